"""The norm of the residual's sum against its definition, entry by entry."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.models.layers import share_of_previous
from rwkv_train.models.residual import Residual, ShiftedNorm, mix_again


def norm_of_pairs() -> ShiftedNorm:
    """A norm of two channels, h = 4 n + (1, 3), in fp64 and without eps."""
    norm = ShiftedNorm(2).double()
    norm.eps = 0.0
    with torch.no_grad():
        norm.weight.fill_(4.0)
        norm.bias.copy_(torch.tensor([1.0, 3.0]))
    return norm


def pairs(*rows: tuple[float, float]) -> torch.Tensor:
    """[1, T, 2]; a pair (a, b) is normalised to (1, -1) where a > b, to (-1, 1) else."""
    return torch.tensor([rows], dtype=torch.float64)


def test_it_adds_norms_and_mixes_a_token_with_the_one_before():
    norm, last = norm_of_pairs(), torch.tensor([[21.0, 0.0]], dtype=torch.float64)
    share = torch.tensor([[[0.5, 0.25]]], dtype=torch.float64)
    # The sums are (5, 1) and (-3, 7): h is (5, -1), then (-3, 7).
    residual = Residual(pairs((4, 0), (1, 0)), pairs((1, 1), (-4, 7)))
    stream, state, (one, other), normal = norm(
        residual, last, None, (share, share_of_previous(share))
    )
    assert stream.flatten().tolist() == [5, 1, -3, 7]
    assert state.flatten().tolist() == [-3, 7]
    assert one.flatten().tolist() == [13, -0.75, 1, 5]
    assert other.flatten().tolist() == [13, -0.25, 1, 1]
    ones = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    (moved,) = mix_again(normal, last, None, (share,), ones, ones[0] / 2)
    assert moved.flatten().tolist() == [29, 0.25, 9, -3]


def test_a_gate_multiplies_the_branch_and_without_shares_the_norm_is_all():
    residual = Residual(pairs((4, 0)), pairs((1, 8)), torch.zeros(1, 1, 2, dtype=torch.float64))
    shifted = norm_of_pairs()(residual)
    assert shifted.stream.flatten().tolist() == [4.5, 4]
    assert residual.total().flatten().tolist() == [4.5, 4]
    assert shifted.mixed[0].flatten().tolist() == [5, -1]


@pytest.mark.parametrize("wide", [False, True])
def test_under_autocast_mixes_are_rounded_once_to_what_the_products_read(wide):
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    share, norm = torch.full((1, 1, 8), 0.3), ShiftedNorm(8)
    torch.nn.init.ones_(norm.weight)
    if wide:
        x, share, norm = x.double(), share.double(), norm.double()
    (plain,) = norm(Residual(x), shares=(share,)).mixed
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (mixed,) = norm(Residual(x), shares=(share,)).mixed
    assert torch.equal(mixed, plain if wide else plain.bfloat16())
