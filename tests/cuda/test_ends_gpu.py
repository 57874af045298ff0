"""What stands at a model's two ends on a CUDA device: embedding and head, against fp64."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.ops.head_loss import native
from rwkv_train.ops.native.custom_ops import CUDA_DTYPES
from tests.cuda.gpu_calls import DEVICE, embedding_on_device, loss_and_gradients
from tests.cuda.head_loss_problems import expected_slice_results, make_slice, rounded_slice
from tests.cuda.problems import assert_results_match
from tests.ops.embedding_norm_cases import make_case, rounded, run

pytestmark = pytest.mark.gpu

every_dtype = pytest.mark.parametrize("dtype", CUDA_DTYPES, ids=str)


@every_dtype
@pytest.mark.parametrize("vocabulary", (7, 257, 8200, 50277, 65536))
def test_a_slice_of_fp32_logits_gives_the_losses_and_gradients_of_fp64(dtype, vocabulary):
    given = rounded_slice(make_slice(300, vocabulary), torch.float32, torch.float32)
    expected = expected_slice_results(given)
    logits, mask, extra = (x.float().to(DEVICE) for x in (given.logits, given.mask, given.extra))
    losses, room = torch.empty(300, device=DEVICE), torch.empty_like(extra)
    loss_and_gradients(dtype, "native")  # loads the kernels
    targets = given.targets.to(DEVICE)
    gradient = native.run("rows", logits, targets, mask, extra, room, losses, dtype)
    found = {"gradient": gradient, "losses": losses, "extra_gradient": room}
    found["loss"], found["total"] = native.run("mean", losses, mask, None)
    assert_results_match({name: x.cpu() for name, x in found.items()}, expected)


@every_dtype
@pytest.mark.parametrize("rows", (None, 100, 128))
def test_the_whole_loss_is_as_exact_as_its_products(dtype, rows):
    expected = loss_and_gradients(dtype, "fp64")
    found = loss_and_gradients(dtype, "native", rows)
    for value, exact in zip(found, expected):
        limit = {torch.float32: 1e-4, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype]
        error = (value.double() - exact).norm() / exact.norm()
        assert error < limit


def test_two_runs_of_the_loss_give_the_same_bits():
    first, second = (loss_and_gradients(torch.bfloat16, "native", 128) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second))


@every_dtype
@pytest.mark.parametrize("width", (5, 33, 96, 768, 4096))
def test_the_embedding_equals_the_plain_composition(dtype, width):
    case = embedding_on_device(rounded(make_case(3, 500, 700, width, frequent=300), dtype))
    assert_results_match(run(case, "native", dtype), run(case, "plain"))


def test_two_runs_of_the_embedding_give_the_same_bits():
    case = embedding_on_device(rounded(make_case(8, 500, 300, 768, frequent=400), torch.bfloat16))
    first, second = (run(case, "native", torch.bfloat16) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
