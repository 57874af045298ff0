"""The token shift by torch's own operators; the law that the native kernels are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from src.ops.dispatch import Call
from src.ops.precision import compute_dtype


def refuses(call: Call) -> str | None:
    """None: torch's own operators serve every call."""
    return None


def run(
    x: Tensor,
    mixes: Tensor,
    last: Tensor | None,
    moves: Tensor | None,
    reset: Tensor | None,
    dtype: torch.dtype,
) -> list[Tensor]:
    """The n results [B, T, C] in `dtype`; gradients by autograd.

    Shapes as in `src.ops.token_shift.token_shift`; mixes in the compute dtype.
    """
    wide = x.to(compute_dtype(x.dtype))
    first = torch.zeros_like(wide[:, 0]) if last is None else last.to(wide.dtype)
    delta = previous(wide, first, reset) - wide
    shares = mixes if moves is None else mixes[:, None, None] + moves
    return [torch.addcmul(wide, delta, share).to(dtype) for share in shares]


def previous(x: Tensor, first: Tensor, reset: Tensor | None) -> Tensor:
    """The token before every token, [B, T, C]; 0 before a document's first.

    first: [B, C], the one before x[:, 0].
    """
    before = torch.cat((first.unsqueeze(1), x[:, :-1]), dim=1)
    return before if reset is None else before.masked_fill(reset.unsqueeze(-1), 0)
