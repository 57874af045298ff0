"""The token shift by torch's own operators in the dtype of x: for GPUs, until there is a kernel.

There the bytes moved are what counts, and for 16-bit models fp32 would double them. x' - x, the
shares and the results are each rounded to the dtype of x, which is how RWKV-LM computes them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from src.ops.dispatch import Call, Refusal
from src.ops.token_shift import reference


def refuses(call: Call) -> Refusal | None:
    """None on a GPU."""
    if call.device.type == "cuda":
        return None
    return Refusal("it rounds more than need be; it serves GPUs", news=False)


def run(
    x: Tensor,
    mixes: Tensor,
    last: Tensor | None,
    moves: Tensor | None,
    reset: Tensor | None,
    dtype: torch.dtype,
) -> list[Tensor]:
    """The n results [B, T, C] in `dtype`; gradients by autograd. Shapes as in `reference`."""
    first = torch.zeros_like(x[:, 0]) if last is None else last.to(x.dtype)
    delta = reference.previous(x, first, reset) - x
    shares = mixes.to(x.dtype)
    if moves is not None:
        shares = shares[:, None, None] + moves.to(x.dtype)
    return [torch.addcmul(x, delta, share).to(dtype) for share in shares]
