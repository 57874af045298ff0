"""Norm and shift by the project's own kernels: C++ on a CPU, CUDA on a GPU (`cuda/norm_shift`).

Kept for the backward pass: the residual stream that the norm reads, mean and inverse deviation of
every token; with a gate the branch and its gate; of `moved_shift` the moves, or the operands of
the product that makes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rwkv_train.ops.backends.dispatch import Call, Refusal, without_autocast
from rwkv_train.ops.native.custom_ops import Registration, card_too_small, refusal, register
from rwkv_train.ops.native.differentiable import below_autograd, call_op
from rwkv_train.ops.norm_shift.normal import Normal

_Optional = Tensor | None
# cuda/norm_shift/norm_shift_cuda.h
WIDEST, WIDEST_ODD = 4096, 512
# Wider tokens have 512 threads, whose sums for eight mixes need so much shared memory.
WIDEST_OF_SMALL_CARDS, BYTES_BEYOND = 2048, 164_096


def _forward_fake(
    x: Tensor,
    out: _Optional,
    gate: _Optional,
    weight: Tensor,
    bias: Tensor,
    mixes: _Optional,
    last: _Optional,
    reset: _Optional,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    batch, time, width = x.shape
    count = 1 if mixes is None else mixes.shape[0]
    return (
        x.new_empty(0) if out is None else x.new_empty(x.shape),
        weight.new_empty(batch, time, 2),
        weight.new_empty(batch, width),
        x.new_zeros(1, dtype=dtype).expand(x.shape),
        [x.new_empty(x.shape, dtype=dtype) for _ in range(count)],
    )


def _backward_fake(
    gy: Sequence[_Optional],
    gstream: _Optional,
    gh_last: _Optional,
    gnormal: _Optional,
    stream: Tensor,
    statistics: Tensor,
    out: _Optional,
    gate: _Optional,
    weight: Tensor,
    bias: Tensor,
    mixes: _Optional,
    last: _Optional,
    reset: _Optional,
    has_out: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    sequence = stream.new_empty(stream.shape, dtype=dtype)
    own_gout = gate is not None or (has_out and dtype != stream.dtype)
    rows = 2 + (0 if mixes is None else mixes.shape[0])
    return (
        stream.new_empty(stream.shape),
        sequence if own_gout else stream.new_empty(0),
        stream.new_empty(0) if gate is None else torch.empty_like(sequence),
        weight.new_empty(rows, *weight.shape),
        stream.new_empty(0) if last is None else last.new_empty(last.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    x, out, gate, weight, bias, mixes, last, reset, _, ctx.dtype = inputs
    stream, statistics = output[0] if out is not None else x, output[1]
    ctx.has_out = out is not None
    # Without a gate the gradient of the branch is that of the stream.
    branch = (out, gate) if gate is not None else (None, None)
    ctx.save_for_backward(stream, statistics, *branch, weight, bias, mixes, last, reset)
    # A result that nothing was computed from gives None, which the kernel does not read.
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any,
    gstream: _Optional,
    _: _Optional,
    gh_last: _Optional,
    gnormal: _Optional,
    gy: Sequence[_Optional],
) -> tuple[_Optional, ...]:
    saved = ctx.saved_tensors
    stream, gate, mixes, last = saved[0], saved[3], saved[6], saved[7]
    # Without a branch the stream is x itself, and the op's first result empty.
    gstream = gstream if ctx.has_out else None
    gx, gout, ggate, gvectors, glast = torch.ops.rwkv.norm_shift_backward(
        gy, gstream, gh_last, gnormal, *saved, ctx.has_out, ctx.dtype
    )
    *gmixes, gweight, gbias = gvectors.unbind()
    if not ctx.has_out:
        gout = None
    elif gate is None and stream.dtype == ctx.dtype:
        # One sum, one gradient: nobody may write into it.
        gout = gx
    return (
        gx,
        gout,
        None if gate is None else ggate,
        gweight,
        gbias,
        None if mixes is None else gvectors[: len(gmixes)],
        None if last is None else glast,
        None,
        None,
        None,
    )


def _moved_forward_fake(
    normal: Tensor,
    stream: Tensor,
    statistics: Tensor,
    weight: Tensor,
    bias: Tensor,
    mixes: Tensor,
    moves: Tensor,
    up: _Optional,
    last: _Optional,
    reset: _Optional,
) -> list[Tensor]:
    return [moves.new_empty(stream.shape) for _ in range(mixes.shape[0])]


def _moved_backward_fake(
    gy: Sequence[_Optional],
    stream: Tensor,
    statistics: Tensor,
    weight: Tensor,
    bias: Tensor,
    mixes: Tensor,
    moves: Tensor,
    up: _Optional,
    last: _Optional,
    reset: _Optional,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        moves.new_empty(stream.shape),
        mixes.new_empty(mixes.shape),
        moves.new_empty(mixes.shape[0], *stream.shape),
        stream.new_empty(0) if last is None else last.new_empty(last.shape),
    )


def _moved_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor]) -> None:
    ctx.save_for_backward(*inputs[1:])
    ctx.set_materialize_grads(False)


def _moved_backward(ctx: Any, gy: Sequence[_Optional]) -> tuple[_Optional, ...]:
    # Once: activation checkpointing gives them out a single time.
    saved = ctx.saved_tensors
    gnormal, gmixes, gmoves, glast = torch.ops.rwkv.moved_shift_backward(gy, *saved)
    glast = None if saved[7] is None else glast
    # The norm that made the tokens has the gradients of its stream and its parameters.
    return gnormal, None, None, None, None, gmixes, gmoves, None, glast, None


class _MovedByProduct(torch.autograd.Function):
    """moved_shift of moves that the backward pass forms again, as it needs them only there."""

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        stream: Tensor,
        statistics: Tensor,
        weight: Tensor,
        bias: Tensor,
        mixes: Tensor,
        low: Tensor,
        up: Tensor,
        last: _Optional,
        reset: _Optional,
    ) -> tuple[Tensor, ...]:
        kept = (stream, statistics, weight, bias, mixes)
        ctx.save_for_backward(*kept, low, up, last, reset)
        ctx.set_materialize_grads(False)
        factors = _factors(low, up)
        with below_autograd():
            return tuple(torch.ops.rwkv.moved_shift_forward(tokens, *kept, *factors, last, reset))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gy: _Optional) -> tuple[_Optional, ...]:
        *kept, low, up, last, reset = ctx.saved_tensors
        with without_autocast(low.device):
            factors = _factors(low, up)
            with below_autograd():
                gnormal, gmixes, gmoves, glast = torch.ops.rwkv.moved_shift_backward(
                    gy, *kept, *factors, last, reset
                )
            rows = gmoves.flatten(1, 2)
            glow = torch.bmm(rows, up.mT).view(low.shape) if ctx.needs_input_grad[6] else None
            gup = torch.bmm(low.flatten(1, 2).mT, rows) if ctx.needs_input_grad[7] else None
        glast = None if last is None else glast
        return gnormal, None, None, None, None, gmixes, glow, gup, glast, None


def _factors(low: Tensor, up: Tensor) -> tuple[Tensor, _Optional]:
    """Returns what moves: low_i and up_i, where the kernel multiplies them, or low_i up_i."""
    if low.device.type == "cpu" and low.dtype in (torch.float32, torch.float64):
        return low, up
    # One batched product: each part alone is too thin for a GPU.
    return torch.bmm(low.flatten(1, 2), up).view(*low.shape[:3], -1), None


_REGISTRATION = Registration(_forward_fake, _backward_fake, _setup_context, _backward)
_MOVED = Registration(
    _moved_forward_fake, _moved_backward_fake, _moved_setup_context, _moved_backward
)


def refuses(call: Call) -> Refusal | None:
    """Returns what stands in the way; None once the kernels are built and loaded."""
    # Of a call, `heads` is the width.
    octets = call.heads % 8 == 0
    if call.device.type == "cuda" and call.heads > (WIDEST if octets else WIDEST_ODD):
        return Refusal(
            f"its CUDA kernels serve widths up to {WIDEST}, or {WIDEST_ODD} where they are no "
            f"multiple of 8, not {call.heads}"
        )
    reason = refusal(call, _REGISTRATION)
    if reason is None and call.device.type == "cuda" and call.heads > WIDEST_OF_SMALL_CARDS:
        reason = card_too_small(call, BYTES_BEYOND)
    if reason is None:
        register("moved_shift", _MOVED)
    return reason


def run(
    x: Tensor,
    out: _Optional,
    gate: _Optional,
    weight: Tensor,
    bias: Tensor,
    mixes: _Optional,
    last: _Optional,
    reset: _Optional,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, list[Tensor], Normal]:
    """Returns the stream, the last normalised token, the n results and the normalised tokens.

    See `norm_shift.norm_shift`.
    """
    stream, statistics, h_last, tokens, *y = call_op(
        "norm_shift", x, out, gate, weight, bias, mixes, last, reset, eps, dtype
    )
    stream = x if out is None else stream
    normal = Normal(tokens, weight, bias, stream, statistics)
    return stream, h_last, y, normal


def run_moved(
    normal: Normal, mixes: Tensor, moves: Tensor, up: _Optional, last: _Optional, reset: _Optional
) -> Sequence[Tensor]:
    """Returns the n results [B, T, C] in the dtype of `moves`; see `norm_shift.moved_shift`."""
    tokens, weight, bias, stream, statistics = normal
    if up is not None:
        mixed: tuple[Tensor, ...] = _MovedByProduct.apply(  # type: ignore[no-untyped-call]
            tokens, stream, statistics, weight, bias, mixes, moves, up, last, reset
        )
        return mixed
    return call_op(
        "moved_shift", tokens, stream, statistics, weight, bias, mixes, moves, None, last, reset
    )
