"""The token shift by torch's own operators: the ground truth for the native kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_train.ops.backends.dispatch import serves_every_call
from rwkv_train.ops.precision import compute_dtype

refuses = serves_every_call


def run(
    x: Tensor,
    mixes: Tensor,
    last: Tensor | None,
    moves: Tensor | None,
    reset: Tensor | None,
    dtype: torch.dtype,
) -> list[Tensor]:
    """Returns the n results [B, T, C] in `dtype`; gradients by autograd.

    Shapes as in `rwkv_train.ops.token_shift.token_shift`; mixes in the compute dtype.
    """
    wide = x.to(compute_dtype(x.dtype))
    first = torch.zeros_like(wide[:, 0]) if last is None else last.to(wide.dtype)
    previous = torch.cat((first.unsqueeze(1), wide[:, :-1]), dim=1)
    if reset is not None:
        previous = previous.masked_fill(reset.unsqueeze(-1), 0)
    delta = previous - wide
    shares = mixes if moves is None else mixes[:, None, None] + moves
    return [torch.addcmul(wide, delta, share).to(dtype) for share in shares]
