"""Losses token by token: by hand, against all logits at once, their mean, and memory."""

from __future__ import annotations

import math

import pytest
import torch

from rwkv_train.errors import BackendError
from rwkv_train.ops.head_loss import head_token_losses
from rwkv_train.ops.head_loss.reference import head_token_losses_reference
from tests.ops.test_head_loss import LargestTensor, inputs, loss_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("rows", [None, 1, 3, 13, 14, 1000])
@pytest.mark.parametrize("with_extra", [False, True])
def test_slices_give_every_token_the_loss_it_has_with_all_logits_at_once(rows, with_extra):
    x, weight, extra, targets = inputs()
    given = {"extra_logits": extra if with_extra else None}
    found = head_token_losses(x, weight, targets, rows=rows, **given)
    expected = head_token_losses_reference(x, weight, targets, **given)
    assert found.shape == targets.shape and found.dtype == torch.float64
    assert not found.requires_grad
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-12)


def test_the_losses_are_those_worked_out_by_hand():
    # Logits (ln 3, 0) and (0, 500): probabilities 3/4, 1/4 and, within rounding, 0, 1.
    x = torch.tensor([[[math.log(3.0), 0.0], [0.0, 500.0]]], dtype=torch.float64)
    weight = torch.eye(2, dtype=torch.float64)
    both = [head_token_losses(x, weight, torch.tensor([[t, t]])) for t in (0, 1)]
    assert both[0].tolist() == [[pytest.approx(math.log(4 / 3)), pytest.approx(500.0)]]
    assert both[1].tolist() == [[pytest.approx(math.log(4.0)), pytest.approx(0.0, abs=1e-15)]]


@pytest.mark.parametrize("weights", [None, (torch.arange(14).view(2, 7) % 4).double()])
def test_their_weighted_mean_is_the_loss(weights):
    x, weight, extra, targets = inputs()
    losses = head_token_losses(x, weight, targets, extra_logits=extra, rows=3)
    counts = torch.ones_like(losses) if weights is None else weights
    loss = loss_of(x, weight, targets, mask=weights, extra_logits=extra)
    assert loss.item() == pytest.approx(((losses * counts).sum() / counts.sum()).item(), rel=1e-13)


def test_bf16_inputs_give_fp32_losses():
    x, weight, _, targets = inputs()
    x, weight = x.detach().bfloat16(), weight.detach().bfloat16()
    found = head_token_losses(x, weight, targets)
    logits = (x @ weight.T).float()
    expected = -logits.log_softmax(2).gather(2, targets.unsqueeze(2)).squeeze(2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_they_never_hold_more_than_one_slice_of_logits():
    batch, time, width, vocab, rows = 4, 256, 4, 1000, 32
    x, weight = torch.randn(batch, time, width), torch.randn(vocab, width)
    targets = torch.randint(vocab, (batch, time))
    with LargestTensor() as record:
        head_token_losses(x, weight, targets, rows=rows)
    assert record.numbers <= rows * vocab


def test_a_wrong_argument_is_refused():
    with pytest.raises(BackendError, match=r"targets has shape \[3, 2\], expected \[2, 3\]"):
        head_token_losses(torch.zeros(2, 3, 4), torch.zeros(9, 4), torch.zeros(3, 2).long())
