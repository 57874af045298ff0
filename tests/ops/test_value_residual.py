"""The value residual by hand, and how the first layer's value is handed on."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.ops.value_residual import value_residual
from tests.ops.fused_cases import require_fused


@pytest.fixture(params=["native", "reference"])
def backend(request) -> str:
    if request.param == "native":
        require_fused("value_residual")
    return request.param


def layer(value: torch.Tensor, first: torch.Tensor, backend: str):
    """A layer that takes half of the first value."""
    zero = torch.zeros_like(value)
    return value_residual(value, first, zero, zero[0, 0], backend=backend)


def test_a_value_is_mixed_with_that_of_the_first_layer(backend):
    value, first = torch.tensor([[[4.0, 4.0]]]), torch.tensor([[[8.0, 0.0]]])
    v, again, handed_on = layer(value, first, backend)
    assert v.flatten().tolist() == again.flatten().tolist() == [6, 2]
    assert torch.equal(handed_on, first)


def test_the_first_value_gets_the_gradients_of_all_layers(backend):
    first = torch.ones(1, 1, 3, requires_grad=True)
    carry, total = first, 0.0
    for weight in (1.0, 10.0, 100.0):
        v, _, carry = layer(torch.zeros(1, 1, 3), carry, backend)
        total = total + weight * v.sum()
    total.backward()
    assert first.grad.flatten().tolist() == [55.5] * 3


def test_a_first_value_that_is_only_handed_on_keeps_its_gradient(backend):
    first = torch.ones(1, 1, 3, requires_grad=True)
    value = torch.zeros(1, 1, 3, requires_grad=True)
    *_, carry = layer(value, first, backend)
    (7 * carry).sum().backward()
    assert first.grad.flatten().tolist() == [7] * 3 and value.grad is None


def test_neither_result_shares_its_gradient_with_another_tensor(backend):
    first = torch.ones(1, 1, 3, requires_grad=True)
    v, again, carry = layer(torch.zeros(1, 1, 3), first, backend)
    gradient = torch.ones(1, 1, 3)
    torch.autograd.backward([v, again, carry], [gradient] * 3)
    assert gradient.flatten().tolist() == [1] * 3
    assert first.grad.flatten().tolist() == [2] * 3
