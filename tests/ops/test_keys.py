"""RWKV-7's keys by hand, and where a key is zero or hardly longer."""

from __future__ import annotations

import math

import pytest
import torch

from rwkv_train.ops.keys import keys
from tests.helpers import assert_close
from tests.ops.fused_cases import FusedCase, check_fused, make_fused_case, require_fused


@pytest.fixture(params=["native", "reference"])
def backend(request) -> str:
    if request.param == "native":
        require_fused("keys")
    return request.param


def test_a_key_is_rescaled_and_its_direction_removed(backend):
    key = torch.tensor([[[[3.0, 2.0]]]])
    # Rates of 1/2 and 3/4.
    logits, base = torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([0.0, math.log(3) - 1])
    k, a, b = keys(
        key, logits, base, torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]), backend=backend
    )
    # p = (3, 4), of length 5
    assert_close("k", k, torch.tensor([[[[1.5, 1.0]]]]), 1e-6)
    assert_close("a", a, torch.tensor([[[[-0.6, -0.8]]]]), 1e-6)
    assert_close("b", b, torch.tensor([[[[0.3, 0.6]]]]), 1e-6)


def test_removal_keys_have_length_one_however_small(backend):
    key = torch.zeros(1, 3, 2, 32, dtype=torch.float64)
    key[0, 0, 0] = 1e-8
    key[0, 1, 1] = 3.0
    key.requires_grad_()
    one = torch.ones(64, dtype=torch.float64)
    _, a, b = keys(key, torch.zeros_like(key), -one, one, one, backend=backend)
    assert a[0].norm(dim=-1).round(decimals=9).tolist() == [[1, 0], [0, 1], [0, 0]]
    assert_close("b", b, -torch.sigmoid(-one[0]) * a, 1e-12)
    (a.sum() + b.sum()).backward()
    assert key.grad.isfinite().all()


# A length at which the limit begins to count, one below, and none.
@pytest.mark.parametrize("length", [2e-12, 0.5e-12, 1e-20, 0.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_key_that_is_hardly_there_has_the_gradient_of_the_reference(length, dtype):
    require_fused("keys")
    case = make_fused_case("keys", (1, 3, 2, 64))
    direction = torch.nn.functional.normalize(case.inputs["key"][0, 1, 1], dim=-1)
    case.inputs["key"][:, :, :] = direction * length
    ones = torch.ones(128, dtype=torch.float64)
    check_fused(FusedCase("keys", case.inputs | {"removal": ones}, case.gradients), dtype)
