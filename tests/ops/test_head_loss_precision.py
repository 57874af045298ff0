"""Head and loss in fp32, in 16 bits, under a loss scale and under autocast."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.ops.head_loss.reference import head_loss_reference
from tests.helpers import relative_rms
from tests.ops.test_head_loss import inputs, loss_of, normal

pytestmark = pytest.mark.usefixtures("one_thread")


def test_fp32_stays_within_its_rounding():
    x, weight, _, targets = inputs()
    expected = torch.autograd.grad(head_loss_reference(x, weight, targets), (x, weight))
    low_x, low_weight = (t.detach().float().requires_grad_() for t in (x, weight))
    loss = loss_of(low_x, low_weight, targets, rows=4)
    assert loss.dtype == torch.float32
    for gradient, right in zip(torch.autograd.grad(loss, (low_x, low_weight)), expected):
        assert gradient.dtype == torch.float32 and relative_rms(gradient, right) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_used_for_the_products_and_fp32_for_the_rest(dtype):
    # 4096 tokens with V = 3000: a bf16 sum of that many losses would be off by per cents.
    x, weight = normal(4, 1024, 16, seed=1), 0.2 * normal(3000, 16, seed=2)
    targets = torch.randint(3000, (4, 1024), generator=torch.Generator().manual_seed(0))
    low_x, low_weight = (t.to(dtype).requires_grad_() for t in (x, weight))
    x, weight = (t.detach().double().requires_grad_() for t in (low_x, low_weight))
    loss = loss_of(low_x, low_weight, targets, rows=500)
    exact = head_loss_reference(x, weight, targets)
    assert loss.dtype == torch.float32
    # a logit of about 1 is rounded by up to 2^-9; the mean of 4096 such errors is far smaller
    assert loss.item() == pytest.approx(exact.item(), rel=1e-4)
    expected = torch.autograd.grad(exact, (x, weight))
    for gradient, right in zip(torch.autograd.grad(loss, (low_x, low_weight)), expected):
        # the logits, the operands and the result are each rounded once to 2^-9 or better
        assert gradient.dtype == dtype and relative_rms(gradient, right) < 4 * 2**-9


def test_fp16_gradients_survive_when_a_loss_scale_follows():
    # The unscaled gradient of x is about 1e-8, below fp16's smallest number 6e-8.
    x = (0.1 * normal(8, 512, 8, seed=1)).half().requires_grad_()
    weight = (1e-4 * normal(50, 8, seed=2)).half()
    targets = torch.randint(50, (8, 512), generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(loss_of(x, weight, targets) * 2.0**16, x)
    wide = x.detach().double().requires_grad_()
    exact = head_loss_reference(wide, weight.double(), targets) * 2.0**16
    (expected,) = torch.autograd.grad(exact, wide)
    assert expected.abs().mean() / 2**16 < 6e-8
    # results near fp16's subnormal range keep some six bits
    assert relative_rms(gradient, expected) < 2**-6


def test_autocast_decides_the_dtype_of_the_products():
    x, weight, _, targets = inputs()
    x, weight = (t.detach().float().requires_grad_() for t in (x, weight))
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(x, weight, targets)
        # one of the two in bf16, as a layer norm in bf16 or a master weight in fp32 gives it
        mixed = loss_of(x.bfloat16(), weight, targets)
    expected = loss_of(x.bfloat16(), weight.bfloat16(), targets)
    assert loss.item() == expected.item() == mixed.item()
    for gradient, right in zip(
        torch.autograd.grad(loss, (x, weight)), torch.autograd.grad(expected, (x, weight))
    ):
        assert gradient.dtype == torch.float32
        # the sum over tokens is fp32 here and rounded to bf16 in `expected`
        assert relative_rms(gradient, right) < 2**-8
