"""The embedding with its norm by torch's own operators: the ground truth for the kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from rwkv_train.ops.backends.dispatch import serves_every_call
from rwkv_train.ops.precision import compute_dtype

refuses = serves_every_call


def run(ids: Tensor, table: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Returns the normalised rows [B, T, C] in the table's dtype; gradients by autograd.

    weight, bias: in the compute dtype.
    """
    rows: Tensor = _WideRows.apply(ids, table)  # type: ignore[no-untyped-call]  # torch's own
    normal = functional.layer_norm(rows, weight.shape, weight, bias, eps)
    return normal.to(table.dtype)


class _WideRows(torch.autograd.Function):
    """(ids [B, T], table [V, C]) -> its rows in the compute dtype, in which gradients are added."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.tokens, ctx.dtype = table.shape[0], table.dtype
        return functional.embedding(ids, table).to(compute_dtype(table.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        (ids,) = ctx.saved_tensors
        # the arguments after the number of rows: no padding token, no scaling by frequency
        rows = torch.ops.aten.embedding_dense_backward(grad, ids, ctx.tokens, -1, False)
        return None, rows.to(ctx.dtype)
