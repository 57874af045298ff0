"""Shared building blocks against their definitions, entry by entry."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.models.layers import HeadNorm, decay_logits
from rwkv_train.models.table import InitContext, orthogonal
from tests.helpers import assert_close, relative_rms
from tests.models.tiny import tiny_config


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_head_norm_is_a_group_norm_under_a_gate(dtype):
    y = torch.empty(2, 3, 4, 8).normal_(generator=torch.Generator().manual_seed(0)).to(dtype)
    norm = HeadNorm(32, eps=64e-5).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(32) / 8)
        norm.bias.copy_(torch.arange(32) / 16)
    wide = y.double()
    mean, var = wide.mean(-1, keepdim=True), wide.var(-1, correction=0, keepdim=True)
    expected = ((wide - mean) / (var + 64e-5).sqrt()).flatten(2)
    expected = expected * norm.weight.double() + norm.bias.double()
    got = norm(y, torch.ones(2, 3, 32, dtype=dtype))
    assert got.dtype == dtype
    # In bf16 only the result is rounded.
    assert_close("norm", got, expected, 1e-12 if dtype == torch.float64 else 2e-3)


def test_decay_logits_follow_their_formula():
    generator = torch.Generator().manual_seed(0)
    x, down, up = (
        torch.empty(shape, dtype=torch.float64).normal_(generator=generator)
        for shape in ((2, 3, 8), (8, 4), (4, 6))
    )
    expected = torch.empty(2, 3, 6, dtype=torch.float64)
    for b in range(2):
        for t in range(3):
            expected[b, t] = torch.tanh(x[b, t] @ down) @ up
    logits, w_gradient = decay_logits(x, down, up)
    assert w_gradient is None
    assert_close("logits", logits, expected, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_gradients_of_decay_logits_err_by_one_rounding_of_the_one_that_arrives(dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (2, 70, 8), "down": (8, 4), "up": (4, 48)}
    given = {
        name: torch.empty(shape).normal_(generator=generator).to(dtype)
        for name, shape in shapes.items()
    }
    g = torch.empty(2, 70, 48).normal_(generator=generator)
    exact = {name: z.double().requires_grad_() for name, z in given.items()}
    leaves = {name: z.requires_grad_() for name, z in given.items()}
    # What follows the rounding of the hidden part is told by the same number in both.
    hidden = torch.tanh(leaves["x"] @ leaves["down"])
    slope = 1 - hidden.double().square()
    expected = {"up": torch.einsum("btr,bta->ra", hidden.double(), g.double())}
    low = torch.einsum("bta,ra->btr", g.double(), exact["up"]) * slope
    expected["x"] = low @ exact["down"].mT
    expected["down"] = torch.einsum("btd,btr->dr", exact["x"], low)
    logits, w_gradient = decay_logits(*leaves.values())
    assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (w_gradient is None) == (dtype != torch.bfloat16)
    differentiable = logits if w_gradient is None else w_gradient
    assert differentiable.shape == logits.shape
    # One number in memory, whatever the length.
    assert w_gradient is None or (w_gradient.dtype == dtype and not any(w_gradient.stride()))
    arriving = g.to(differentiable.dtype)
    gradients = torch.autograd.grad(differentiable, list(leaves.values()), arriving)
    for name, found in zip(leaves, gradients):
        one = relative_rms(expected[name].to(dtype), expected[name])
        # the result's own, that of g, and for x and down two of the hidden part's gradient
        roundings = 2 if name == "up" else 4
        limit = 1e-12 if dtype == torch.float64 else 1e-6 + 1.2 * roundings**0.5 * one
        assert_close(name, found, expected[name], limit)


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9)])
def test_orthogonal_matrices_are_those_of_a_gaussian_with_positive_triangle(shape):
    config = tiny_config("6")
    place = InitContext(shape, 0, config, 0.0, torch.Generator().manual_seed(5))
    q = orthogonal(2.0)(place).double() / 2
    tall = q if shape[0] >= shape[1] else q.T
    gaussian = torch.empty(tall.shape).normal_(generator=torch.Generator().manual_seed(5)).double()
    # A = Q R with R's diagonal positive is unique, and makes Q uniformly distributed.
    triangle = tall.T @ gaussian
    assert triangle.tril(-1).abs().max() < 1e-5
    assert triangle.diagonal().min() > 0
    assert_close("Q R", tall @ triangle, gaussian, 1e-6)
