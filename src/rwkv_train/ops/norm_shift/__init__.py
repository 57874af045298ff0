"""Norm and shift: residual sum, layer norm, token shift and n mixes in one pass over the tokens.

Per token, with a branch `out` of the block before and, in RWKV-4, 5 and 6, its `gate`,

    x' = x,  x + out  or  x + sigmoid(gate) out          rounded to the dtype of x
    h = (x' - mean x') / sqrt(mean (x' - mean x')^2 + eps) weight + bias
    y_i = h + (h of the token before - h) mixes_i        i = 1 ... n; without mixes y = h

The token before is zero at the start (or `last`) and where a document starts. Computed in fp32
(fp64) and rounded where it is stored: neither h nor any gradient on the way is. The gradients of
the parameters are sums over tokens in an order of their own, which depends on the shape alone.

RWKV-6 finds a part of its mixes from a first result. `moved_shift` mixes the same tokens h once
more, with mixes_i + moves_i; h is computed again and its two gradients meet unrounded. Moves
that a product makes are formed again too.

| backend     | serves                                            | kept for the backward pass     |
|-------------|---------------------------------------------------|--------------------------------|
| `native`    | C++ on the CPU, CUDA on the GPU; needs a compiler | x', two numbers a token; out   |
|             |                                                   | and gate, if given; moves, or  |
|             |                                                   | the operands of their product  |
| `reference` | any device, torch operators one by one            | about six sequences in fp32    |

Source: RWKV papers, architecture sections: residual stream, layer norm, token shift.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rwkv_train.errors import BackendError
from rwkv_train.ops.arguments import (
    check_floats,
    check_reset,
    check_sequences,
    describe_call,
    prepare,
)
from rwkv_train.ops.backends.dispatch import AUTO, backends_of, dispatch, without_autocast
from rwkv_train.ops.norm_shift import native, reference
from rwkv_train.ops.norm_shift.normal import Normal

BACKENDS = backends_of("norm_shift", "native", "reference")
# The n of the kernels' parameters, cuda/norm_shift/norm_shift.h.
MOST_SHIFTED = 8
EPS = 1e-5
_NARROW = (torch.bfloat16, torch.float16)


class NormShift(NamedTuple):
    """The results of `norm_shift`.

    stream: x', [B, T, C] in the dtype of x.
    last: h at the last token, [B, C] in the compute dtype: in 16 bits a row read in pieces would
        not equal the whole.
    mixed: the y_i, each [B, T, C].
    normal: h, for `moved_shift`.
    """

    stream: Tensor
    last: Tensor
    mixed: tuple[Tensor, ...]
    normal: Normal


def norm_shift(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mixes: Tensor | None = None,
    last: Tensor | None = None,
    *,
    out: Tensor | None = None,
    gate: Tensor | None = None,
    reset: Tensor | None = None,
    eps: float = EPS,
    dtype: torch.dtype | None = None,
    backend: str = AUTO,
) -> NormShift:
    """Returns the residual sum, its last normalised token and the n mixes of all of them.

    x: [B, T, C], one of fp32, bf16, fp16, fp64.
    weight, bias: [C]; mixes: [n, C], n from 1 to 8; any float dtype.
    last: [B, C], any float dtype: h of the token before x[:, 0]; None: zero.
    out, gate: [B, T, C], read in the dtype of the results; a gate needs out.
    reset: [B, T] bool; True where a document starts, which has no predecessor.
    dtype: of the y_i: that of x (None), or a 16-bit one with x in fp32.

    Gradients flow to every float argument. Raises BackendError when an argument does not fit or
    the backend asked for cannot serve the call.
    """
    like = check_sequences("norm_shift", {"x": x}, "[B, T, C]")
    batch, _, width = like.shape
    weight = prepare("norm_shift", "weight", weight, (width,), like)
    bias = prepare("norm_shift", "bias", bias, (width,), like)
    if mixes is not None:
        mixes = _prepared_mixes("norm_shift", mixes, like)
    if last is not None:
        last = prepare("norm_shift", "last", last, (batch, width), like)
    dtype = _dtype_of_results(dtype, like)
    out, gate = _checked_branch(out, gate, like, dtype)
    check_reset("norm_shift", reset, like)
    tensors = (x, out, gate, weight, bias, mixes, last)
    call = describe_call(
        "norm_shift", like, tensors, has_state=last is not None, has_reset=reset is not None
    )
    arguments = (*tensors, reset, eps, dtype)
    stream, h_last, mixed, normal = dispatch(BACKENDS, backend, call, arguments)
    return NormShift(stream, h_last, tuple(mixed), normal)


def moved_shift(
    normal: Normal,
    mixes: Tensor,
    moves: Tensor,
    last: Tensor | None = None,
    *,
    up: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Returns h + (h of the token before - h) (mixes_i + moves_i), n times [B, T, C].

    normal: of a `norm_shift`, whose backend serves this call too.
    mixes: [n, C].
    moves: [n, B, T, C], in the dtype of the results; with `up` [n, B, T, R].
    up: [n, R, C], any float dtype: the products moves_i up_i, in the dtype of moves, move.
    last, reset: those of the `norm_shift`.
    """
    like = normal.tokens
    batch, time, width = like.shape
    mixes = _prepared_mixes("moved_shift", mixes, like)
    if up is not None:
        rank = moves.shape[-1]
        check_floats("moved_shift", "up", up, (len(mixes), rank, width), like)
        up = up.to(moves.dtype)
    else:
        rank = width
    check_floats("moved_shift", "moves", moves, (len(mixes), batch, time, rank), like)
    if last is not None:
        last = prepare("moved_shift", "last", last, (batch, width), like)
    check_reset("moved_shift", reset, like)
    module = reference if normal.statistics is None else native
    with without_autocast(like.device):
        return tuple(module.run_moved(normal, mixes, moves, up, last, reset))


def _prepared_mixes(op: str, mixes: object, like: Tensor) -> Tensor:
    """Returns mixes [n, C] in the compute dtype; raises BackendError for an impossible n."""
    if isinstance(mixes, Tensor) and mixes.dim() == 2 and 1 <= mixes.shape[0] <= MOST_SHIFTED:
        return prepare(op, "mixes", mixes, (mixes.shape[0], like.shape[2]), like)
    got = f"is {type(mixes).__name__}"
    if isinstance(mixes, Tensor):
        got = f"has shape {list(mixes.shape)}"
    raise BackendError(
        f"{op}: mixes {got}, expected [n, {like.shape[2]}] with n from 1 to {MOST_SHIFTED}"
    )


def _checked_branch(
    out: Tensor | None, gate: Tensor | None, like: Tensor, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """Returns out and gate in `dtype`; raises BackendError when they do not fit x."""
    if out is None and gate is not None:
        raise BackendError("norm_shift: a gate is given, but no out that it multiplies")
    for name, tensor in (("out", out), ("gate", gate)):
        if tensor is not None:
            check_floats("norm_shift", name, tensor, tuple(like.shape), like)
    return None if out is None else out.to(dtype), None if gate is None else gate.to(dtype)


def _dtype_of_results(given: torch.dtype | None, like: Tensor) -> torch.dtype:
    """Returns the dtype of the results; raises BackendError unless it goes with that of x."""
    dtype = like.dtype if given is None else given
    if dtype == like.dtype or (like.dtype == torch.float32 and dtype in _NARROW):
        return dtype
    also = ", bfloat16 or float16" if like.dtype == torch.float32 else ""
    raise BackendError(f"norm_shift: dtype is {dtype}, expected {like.dtype}, as x{also}")
