"""The vectors of a layer in fp32, all with one launch, and their gradients back with another.

A vector's own conversion is a launch of a few kilobytes, forward and backward, and a layer of
RWKV-7 has twenty vectors: more launches than all else but the products.
"""

from __future__ import annotations

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
    wide = iter(_Widened.apply(*narrow))  # type: ignore[no-untyped-call]  # torch's own
    return tuple(next(wide) if vector.dtype in _NARROW else vector for vector in vectors)


class _Widened(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *vectors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtypes = [vector.dtype for vector in vectors]
        wide = [torch.empty_like(vector, dtype=torch.float32) for vector in vectors]
        torch._foreach_copy_(wide, list(vectors))
        return tuple(wide)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        there = [
            (grad, torch.empty_like(grad, dtype=dtype))
            for grad, dtype, wanted in zip(grads, ctx.dtypes, ctx.needs_input_grad)
            if grad is not None and wanted
        ]
        if there:
            torch._foreach_copy_([narrow for _, narrow in there], [grad for grad, _ in there])
        rounded = iter(narrow for _, narrow in there)
        return tuple(
            next(rounded) if grad is not None and wanted else None
            for grad, wanted in zip(grads, ctx.needs_input_grad)
        )
