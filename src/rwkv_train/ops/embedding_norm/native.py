"""The embedding with its norm by the project's own kernels, C++ and CUDA (`cuda/embedding_norm`).

Kept for the backward pass: the ids, and the parameters themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rwkv_train.ops.backends.dispatch import Call, Refusal
from rwkv_train.ops.native.custom_ops import Registration, refusal
from rwkv_train.ops.native.differentiable import call_op


def _forward_fake(ids: Tensor, table: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return table.new_empty(*ids.shape, table.shape[1])


def _backward_fake(
    gy: Tensor, ids: Tensor, table: Tensor, weight: Tensor, eps: float, wants_table: bool
) -> tuple[Tensor, Tensor, Tensor]:
    gtable = table.new_empty(table.shape if wants_table else 0)
    return gtable, weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ids, table, weight, _, ctx.eps = inputs
    ctx.save_for_backward(ids, table, weight)


def _backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
    wants_table = ctx.needs_input_grad[1]
    gtable, gweight, gbias = torch.ops.rwkv.embedding_norm_backward(
        gy, *ctx.saved_tensors, ctx.eps, wants_table
    )
    return None, gtable if wants_table else None, gweight, gbias, None


_REGISTRATION = Registration(_forward_fake, _backward_fake, _setup_context, _backward)


def refuses(call: Call) -> Refusal | None:
    """Returns what stands in the way; None once the kernels are built and loaded."""
    return refusal(call, _REGISTRATION)


def run(ids: Tensor, table: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Returns the normalised rows [B, T, C]; see `embedding_norm.embedding_norm`."""
    rows: Tensor
    (rows,) = call_op("embedding_norm", ids, table, weight, bias, eps)
    return rows
