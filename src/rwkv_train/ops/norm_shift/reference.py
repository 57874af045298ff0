"""Norm and shift by torch's own operators: the ground truth for the native kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_train.ops.backends.dispatch import serves_every_call
from rwkv_train.ops.norm_shift.normal import Normal
from rwkv_train.ops.precision import compute_dtype

refuses = serves_every_call


def run(
    x: Tensor,
    out: Tensor | None,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    mixes: Tensor | None,
    last: Tensor | None,
    reset: Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, list[Tensor], Normal]:
    """Returns the stream, the last normalised token, the n results and the normalised tokens.

    Shapes as in `rwkv_train.ops.norm_shift.norm_shift`; weight, bias, mixes and last in the
    compute dtype. Gradients by autograd.
    """
    wide = compute_dtype(x.dtype)
    if out is not None:
        branch = out.to(wide) if gate is None else torch.sigmoid(gate.to(wide)) * out.to(wide)
        x = (x.to(wide) + branch).to(x.dtype)
    h = F.layer_norm(x.to(wide), weight.shape, weight, bias, eps)
    results = [h] if mixes is None else _mixed(h, list(mixes), last, reset)
    return x, h[:, -1], [y.to(dtype) for y in results], Normal(h, weight, bias)


def run_moved(
    normal: Normal,
    mixes: Tensor,
    moves: Tensor,
    up: Tensor | None,
    last: Tensor | None,
    reset: Tensor | None,
) -> list[Tensor]:
    """Returns the n results [B, T, C] in the dtype of `moves`; see `norm_shift.moved_shift`."""
    if up is not None:
        moves = torch.bmm(moves.flatten(1, 2), up).view(*moves.shape[:3], -1)
    shares = list(mixes[:, None, None] + moves)
    return [y.to(moves.dtype) for y in _mixed(normal.tokens, shares, last, reset)]


def _mixed(
    h: Tensor, shares: list[Tensor], last: Tensor | None, reset: Tensor | None
) -> list[Tensor]:
    first = torch.zeros_like(h[:, 0]) if last is None else last
    previous = torch.cat((first.unsqueeze(1), h[:, :-1]), dim=1)
    if reset is not None:
        previous = previous.masked_fill(reset.unsqueeze(-1), 0)
    delta = previous - h
    return [torch.addcmul(h, delta, share) for share in shares]
