"""Two products of one input give what they give one by one."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.models.layers import Linear
from rwkv_train.models.two_products import two_products
from tests.helpers import STORED_ONCE, TOLERANCE, assert_close, relative_rms


class Renamed(Linear):
    """A matrix that has a class of its own, as adapted ones have."""


def results(kind: type[Linear], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        exact = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return exact.bfloat16().to(dtype).requires_grad_()

    x, matrix, linear = normal(2, 9, 32), normal(32, 8), kind(32, 24)
    linear.weight = torch.nn.Parameter(normal(24, 32).detach())
    outputs = two_products(x, linear, matrix)
    loss = sum(
        (y.double() * torch.cos(torch.arange(y.numel()).view(y.shape))).sum() for y in outputs
    )
    gradients = torch.autograd.grad(loss, (x, linear.weight, matrix))
    return dict(zip(("first", "second", "gx", "gweight", "gmatrix"), (*outputs, *gradients)))


@pytest.mark.parametrize("kind", [Linear, Renamed])
def test_they_agree_with_separate_products(kind):
    expected = results(Renamed, torch.float64)
    for name, value in results(kind, torch.float32).items():
        assert_close(name, value, expected[name], TOLERANCE[torch.float32])


def test_the_sum_of_the_gradients_of_the_input_is_rounded_no_more_often_than_autograds():
    exact = results(Renamed, torch.float64)["gx"]
    one_by_one, together = (results(kind, torch.bfloat16)["gx"] for kind in (Renamed, Linear))
    assert relative_rms(together, exact) <= STORED_ONCE * relative_rms(one_by_one, exact)


def test_autocast_rounds_them_as_it_does_single_products():
    with torch.autocast("cpu", torch.bfloat16):
        together, single = results(Linear, torch.float32), results(Renamed, torch.float32)
    for name in ("first", "second"):
        assert together[name].dtype == torch.bfloat16
        assert torch.equal(together[name], single[name])
    for name in ("gweight", "gmatrix"):
        assert together[name].dtype == torch.float32
        assert torch.equal(together[name], single[name])


def test_a_frozen_matrix_gets_no_gradient():
    x, linear = torch.randn(1, 3, 4, requires_grad=True), Linear(4, 4).requires_grad_(False)
    matrix = torch.randn(4, 2, requires_grad=True)
    first, second = two_products(x, linear, matrix)
    (first.sum() + second.sum()).backward()
    assert linear.weight.grad is None and matrix.grad is not None and x.grad is not None
