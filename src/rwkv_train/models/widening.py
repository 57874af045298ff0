"""Tensors of a layer in another dtype, all with one launch, and their gradients with another.

A vector's own conversion to fp32 is a launch of a few kilobytes, forward and backward, and a layer
of RWKV-7 has twenty vectors: more launches than all else but the products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_NARROW = (torch.bfloat16, torch.float16)


def widened(*vectors: Tensor) -> tuple[Tensor, ...]:
    """Returns the vectors, those of 16 bits in fp32, in their order.

    A gradient comes back in the dtype of its vector, rounded once.
    """
    narrow = [vector for vector in vectors if vector.dtype in _NARROW]
    if len(narrow) < 2 or torch.compiler.is_compiling():
        return tuple(x.float() if x.dtype in _NARROW else x for x in vectors)
    wide = iter(converted(narrow, torch.float32))
    return tuple(next(wide) if vector.dtype in _NARROW else vector for vector in vectors)


def converted(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Returns copies of the tensors in `dtype`, in their order.

    A gradient comes back in the dtype of its tensor, rounded once. Together: the first gradient
    waits for the last one. A copy of what does not learn does not ask for one.
    """
    copies: tuple[Tensor, ...] = _Converted.apply(  # type: ignore[no-untyped-call]  # torch's own
        dtype, *tensors
    )
    return copies


class _Converted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
        torch._foreach_copy_(copies, list(tensors))
        learns = ctx.needs_input_grad[1:]
        ctx.mark_non_differentiable(*(c for c, wanted in zip(copies, learns) if not wanted))
        return tuple(copies)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        there = [
            (grad, torch.empty_like(grad, dtype=dtype))
            for grad, dtype in zip(grads, ctx.dtypes)
            if grad is not None
        ]
        if there:
            torch._foreach_copy_([own for _, own in there], [grad for grad, _ in there])
        own = iter(own for _, own in there)
        return None, *(None if grad is None else next(own) for grad in grads)
