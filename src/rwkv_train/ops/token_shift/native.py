"""The token shift by the project's own kernels: C++ on a CPU, CUDA on a GPU (`cuda/token_shift`).

Kept for the backward pass: the arguments, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rwkv_train.ops.backends.dispatch import Call, Refusal
from rwkv_train.ops.native.custom_ops import Registration, refusal


def _forward_fake(
    x: Tensor,
    mixes: Tensor,
    last: Tensor | None,
    moves: Tensor | None,
    reset: Tensor | None,
    dtype: torch.dtype,
) -> list[Tensor]:
    return [x.new_empty(x.shape, dtype=dtype) for _ in range(mixes.shape[0])]


def _backward_fake(
    gy: Sequence[Tensor],
    x: Tensor,
    mixes: Tensor,
    last: Tensor | None,
    moves: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gmoves = x.new_empty(0) if moves is None else moves.new_empty(moves.shape)
    return (
        x.new_empty(x.shape),
        mixes.new_empty(mixes.shape),
        x.new_empty(x.shape[0], x.shape[2]),
        gmoves,
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor]) -> None:
    *tensors, ctx.dtype = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, gy: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    x, mixes, last, moves, reset = ctx.saved_tensors
    # A result that nothing was computed from has no gradient.
    whole = [x.new_zeros(x.shape, dtype=ctx.dtype) if g is None else g for g in gy]
    gx, gmixes, glast, gmoves = torch.ops.rwkv.token_shift_backward(
        whole, x, mixes, last, moves, reset
    )
    return (
        gx,
        gmixes,
        None if last is None else glast,
        None if moves is None else gmoves,
        None,
        None,
    )


_REGISTRATION = Registration(_forward_fake, _backward_fake, _setup_context, _backward)


def refuses(call: Call) -> Refusal | None:
    """Returns what stands in the way; None once the kernels are built and loaded."""
    return refusal(call, _REGISTRATION)


def run(
    x: Tensor,
    mixes: Tensor,
    last: Tensor | None,
    moves: Tensor | None,
    reset: Tensor | None,
    dtype: torch.dtype,
) -> list[Tensor]:
    """Returns the n results [B, T, C] in `dtype`; see `token_shift.token_shift`."""
    results: list[Tensor] = torch.ops.rwkv.token_shift_forward(x, mixes, last, moves, reset, dtype)
    return results
