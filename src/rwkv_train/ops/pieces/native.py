"""Pieces by the project's own kernels: C++ on a CPU, CUDA on a GPU (`cuda/wkv4_piece` and so on).

They read what the state depends on and write nothing per token. On a GPU they scan over the tokens;
where the operators go by chunks on tensor cores, calls of those are faster, and are made instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rwkv_train.ops.backends.dispatch import Call, Refusal
from rwkv_train.ops.native.custom_ops import (
    CHUNK_KERNELS,
    CHUNKS_HEAD_SIZE,
    KERNELS,
    PlainOps,
    refusal,
)
from rwkv_train.ops.pieces import operator_calls
from rwkv_train.ops.precision import compute_dtype
from rwkv_train.ops.wkv4.reference import Sums
from rwkv_train.ops.wkv6.native import WKV6_SHARED_BYTES
from rwkv_train.ops.wkv7.native import WKV7_SHARED_BYTES

# The operators' CUDA kernels go by chunks from here on, by themselves.
TOKENS_FOR_CHUNKS = 65


def refuses(call: Call) -> Refusal | None:
    """Returns what stands in the way; None once the kernels are built and loaded."""
    return refusal(call, _OPS[call.op])


def run(form: str, *arguments: Any, kernel: str = "") -> Any:
    """Returns the results of a form of `rwkv_train.ops.pieces.reference`."""
    if goes_by_chunks(arguments[1], kernel):
        return operator_calls.run(f"native:{kernel}" if kernel else "native", form, *arguments)
    with torch.no_grad():
        return _FORMS[form](*arguments, KERNELS[kernel])


def goes_by_chunks(sequence: Tensor, kernel: str) -> bool:
    """Tells whether the operators' kernels go by chunks for such a call, [B, T, H, N] in its dtype.

    kernel: the one asked for, "" for none.
    """
    if kernel:
        return kernel in CHUNK_KERNELS
    served = sequence.device.type == "cuda" and sequence.dtype == torch.bfloat16
    return (
        served
        and sequence.dim() == 4
        and sequence.shape[3] == CHUNKS_HEAD_SIZE
        and sequence.shape[1] >= TOKENS_FOR_CHUNKS
    )


def _wkv4_piece(*arguments: Any) -> Sums:
    aa, bb, pp = torch.ops.rwkv.wkv4_piece(*arguments).unbind(1)
    return aa, bb, pp


def _wkv5_6_piece(
    k: Tensor, v: Tensor, w: Tensor, base: Tensor | None, reset: Tensor | None, kernel: int
) -> tuple[Tensor, Tensor]:
    decay, contribution = torch.ops.rwkv.wkv5_6_piece(k, v, w, base, reset, False, kernel)
    return decay, contribution


def _wkv5_6_state_gradient(
    gy: Tensor, r: Tensor, w: Tensor, base: Tensor | None, reset: Tensor | None, kernel: int
) -> Tensor:
    gradient: Tensor = torch.ops.rwkv.wkv5_6_piece(r, gy, w, base, reset, True, kernel)[1]
    return gradient


def _wkv7_piece(*arguments: Any) -> tuple[Tensor, Tensor]:
    *tensors, kernel = arguments
    transition, contribution = torch.ops.rwkv.wkv7_piece(*tensors, False, kernel)
    return transition, contribution


def _wkv7_state_gradient(gy: Tensor, r: Tensor, w: Tensor, *others: Any) -> Tensor:
    *tensors, kernel = others
    gradient: Tensor = torch.ops.rwkv.wkv7_piece(w, r, gy, *tensors, True, kernel)[1]
    return gradient


def _sums_fake(w: Tensor, k: Tensor, *others: Any) -> Tensor:
    return k.new_empty((k.shape[0], 3, k.shape[2]), dtype=compute_dtype(k.dtype))


def _decay_fake(keys: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    batch, _, heads, size = keys.shape
    decay = keys.new_empty((batch, heads, size), dtype=compute_dtype(keys.dtype))
    return decay, decay.new_empty(batch, heads, size, size)


def _matrix_fake(w: Tensor, keys: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    batch, _, heads, size = keys.shape
    matrix = keys.new_empty((batch, heads, size, size), dtype=compute_dtype(keys.dtype))
    backwards = others[-2]
    return matrix.new_empty(0) if backwards else torch.empty_like(matrix), matrix


_OPS: dict[str, PlainOps] = {
    "wkv4_piece": PlainOps({"wkv4_piece": _sums_fake}),
    "wkv5_6_piece": PlainOps({"wkv5_6_piece": _decay_fake}, WKV6_SHARED_BYTES),
    "wkv7_piece": PlainOps({"wkv7_piece": _matrix_fake}, WKV7_SHARED_BYTES),
}
_FORMS: dict[str, Callable[..., Any]] = {
    "wkv4_piece": _wkv4_piece,
    "wkv5_6_piece": _wkv5_6_piece,
    "wkv7_piece": _wkv7_piece,
    "wkv5_6_state_gradient": _wkv5_6_state_gradient,
    "wkv7_state_gradient": _wkv7_state_gradient,
}
