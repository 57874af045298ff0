"""Pieces by the project's own kernels: C++ on a CPU (`cuda/wkv4_piece` and so on).

They read what the state depends on and write nothing per token. On a GPU the operators' own kernels
are called in their place, and for the gradient of WKV-4's state everywhere: `operator_calls.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rwkv_train.ops.backends.dispatch import Call, Refusal
from rwkv_train.ops.native.custom_ops import PlainOps, refusal
from rwkv_train.ops.pieces import operator_calls
from rwkv_train.ops.precision import compute_dtype
from rwkv_train.ops.wkv4.reference import Sums


def refuses(call: Call) -> Refusal | None:
    """Returns what stands in the way; None once the kernels are built and loaded."""
    return refusal(call, PlainOps({call.op: _FAKES[call.op]}))


def run(form: str, *arguments: Any, kernel: str = "") -> Any:
    """Returns the results of a form of `rwkv_train.ops.pieces.reference`."""
    with torch.no_grad():
        return _FORMS[form](*arguments)


def _wkv4_piece(w: Tensor, k: Tensor, v: Tensor, reset: Tensor | None) -> Sums:
    aa, bb, pp = torch.ops.rwkv.wkv4_piece(w, k, v, reset).unbind(1)
    return aa, bb, pp


def _wkv5_6_piece(
    k: Tensor, v: Tensor, w: Tensor, base: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    decay, contribution = torch.ops.rwkv.wkv5_6_piece(k, v, w, base, reset, False)
    return decay, contribution


def _wkv5_6_state_gradient(
    gy: Tensor, r: Tensor, w: Tensor, base: Tensor | None, reset: Tensor | None
) -> Tensor:
    _, gradient = torch.ops.rwkv.wkv5_6_piece(r, gy, w, base, reset, True)
    return gradient  # type: ignore[no-any-return]  # a Tensor by its schema


def _wkv7_piece(*arguments: Tensor | None) -> tuple[Tensor, Tensor]:
    transition, contribution = torch.ops.rwkv.wkv7_piece(*arguments, False)
    return transition, contribution


def _wkv7_state_gradient(gy: Tensor, r: Tensor, w: Tensor, *others: Tensor | None) -> Tensor:
    _, gradient = torch.ops.rwkv.wkv7_piece(w, r, gy, *others, True)
    return gradient  # type: ignore[no-any-return]  # a Tensor by its schema


def _wkv4_state_gradient(*arguments: Any) -> Any:
    return operator_calls.run("native", "wkv4_state_gradient", *arguments)


def _sums_fake(w: Tensor, k: Tensor, *_: Any) -> Tensor:
    return k.new_empty((k.shape[0], 3, k.shape[2]), dtype=compute_dtype(k.dtype))


def _decay_fake(keys: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    batch, _, heads, size = keys.shape
    decay = keys.new_empty((batch, heads, size), dtype=compute_dtype(keys.dtype))
    return decay, decay.new_empty(batch, heads, size, size)


def _matrix_fake(w: Tensor, keys: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    batch, _, heads, size = keys.shape
    matrix = keys.new_empty((batch, heads, size, size), dtype=compute_dtype(keys.dtype))
    return matrix.new_empty(0) if others[-1] else matrix.clone(), matrix


_FAKES: dict[str, Callable[..., Any]] = {
    "wkv4_piece": _sums_fake,
    "wkv5_6_piece": _decay_fake,
    "wkv7_piece": _matrix_fake,
}
_FORMS: dict[str, Callable[..., Any]] = {
    "wkv4_piece": _wkv4_piece,
    "wkv5_6_piece": _wkv5_6_piece,
    "wkv7_piece": _wkv7_piece,
    "wkv4_state_gradient": _wkv4_state_gradient,
    "wkv5_6_state_gradient": _wkv5_6_state_gradient,
    "wkv7_state_gradient": _wkv7_state_gradient,
}
