"""Shared building blocks against their definitions, entry by entry."""

from __future__ import annotations

import pytest
import torch

from src.models.layers import HeadNorm, decay_logits, mix, token_shift
from src.models.table import Place, orthogonal
from tests.helpers import assert_close
from tests.models.tiny import tiny_config, tiny_model


def test_every_token_sees_the_one_before_it():
    x = torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]])
    assert token_shift(x, None, None).flatten().tolist() == [0, 1, 2, 0, 4, 5]
    last = torch.tensor([[7.0], [8.0]])
    assert token_shift(x, last, None).flatten().tolist() == [7, 1, 2, 8, 4, 5]
    reset = torch.tensor([[False, True, False], [True, False, True]])
    assert token_shift(x, last, reset).flatten().tolist() == [7, 0, 2, 0, 4, 0]
    assert token_shift(x[:, :1], last, None).flatten().tolist() == [7, 8]
    assert token_shift(x[:, :1], last, reset[:, :1]).flatten().tolist() == [7, 0]


def test_a_mix_moves_by_a_share_of_the_difference():
    x, delta = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[10.0, 100.0]]])
    assert mix(x, delta, torch.tensor([[[0.5, 0.0]]])).flatten().tolist() == [6, 2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_head_norm_is_a_group_norm(dtype):
    y = torch.empty(2, 3, 4, 8).normal_(generator=torch.Generator().manual_seed(0)).to(dtype)
    norm = HeadNorm(32, eps=64e-5).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(32) / 8)
        norm.bias.copy_(torch.arange(32) / 16)
    wide = y.double()
    mean, var = wide.mean(-1, keepdim=True), wide.var(-1, correction=0, keepdim=True)
    expected = ((wide - mean) / (var + 64e-5).sqrt()).flatten(2)
    expected = expected * norm.weight.double() + norm.bias.double()
    got = norm(y)
    assert got.dtype == dtype
    # In bf16 only the result is rounded.
    assert_close("norm", got, expected, 1e-12 if dtype == torch.float64 else 2e-3)


def test_decay_logits_follow_their_formula():
    generator = torch.Generator().manual_seed(0)
    x, down, up, base = (torch.empty(shape, dtype=torch.float64).normal_(generator=generator)
                         for shape in ((2, 3, 8), (8, 4), (4, 6), (1, 1, 6)))
    expected = torch.empty(2, 3, 6, dtype=torch.float64)
    for b in range(2):
        for t in range(3):
            expected[b, t] = base[0, 0] + torch.tanh(x[b, t] @ down) @ up
    assert_close("logits", decay_logits(base, x, down, up), expected, 1e-12)


def test_rwkv7_removal_keys_have_length_one_however_small():
    att = tiny_model("7").double().blocks[1].att
    with torch.no_grad():
        att.k_k.fill_(1.0)
    k = torch.zeros(1, 3, 64, dtype=torch.float64)
    k[0, 0, :32] = 1e-8
    k[0, 1, 32:] = 3.0
    k.requires_grad_()
    rate = torch.full((1, 3, 64), 0.25, dtype=torch.float64)
    _, a, b = att._keys(k, rate)
    lengths = a[0].norm(dim=-1)                                                 # [T, H]
    assert lengths.round(decimals=9).tolist() == [[1, 0], [0, 1], [0, 0]]
    assert_close("b", b, -0.25 * a, 1e-12)
    (a.sum() + b.sum()).backward()
    assert k.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9)])
def test_orthogonal_matrices_are_those_of_a_gaussian_with_positive_triangle(shape):
    config = tiny_config("6")
    place = Place(shape, 0, config, 0.0, torch.Generator().manual_seed(5))
    q = orthogonal(2.0)(place).double() / 2
    tall = q if shape[0] >= shape[1] else q.T
    gaussian = torch.empty(tall.shape).normal_(generator=torch.Generator().manual_seed(5)).double()
    # A = Q R with R's diagonal positive is unique, and makes Q uniformly distributed.
    triangle = tall.T @ gaussian
    assert triangle.tril(-1).abs().max() < 1e-5
    assert triangle.diagonal().min() > 0
    assert_close("Q R", tall @ triangle, gaussian, 1e-6)
