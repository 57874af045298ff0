"""Two matrix products of one input, whose gradients by it are added up by the second one.

Left to autograd the sum is a pass of its own over three sequences, and one more rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rwkv_train.models.layers import Linear, may_be_shards
from rwkv_train.ops.backends.dispatch import autocast_dtype, without_autocast


def two_products(x: Tensor, linear: Linear, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Returns linear(x), [B, T, A], and x @ matrix, [B, T, R].

    x: [B, T, D].  matrix: [D, R].
    """
    # An adapted matrix has products of its own, and a sharded one is whole inside its module alone.
    if type(linear) is not Linear or may_be_shards(linear.weight, matrix):
        return linear(x), x @ matrix
    dtype = autocast_dtype(x) or x.dtype
    first, second = _TwoProducts.apply(  # type: ignore[no-untyped-call]  # torch's own
        x.to(dtype), linear.weight.to(dtype), matrix.to(dtype)
    )
    return first, second


class _TwoProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight, matrix)
        with without_autocast(x.device):
            return F.linear(x, weight), x @ matrix

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gfirst: Tensor, gsecond: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, matrix = ctx.saved_tensors
        rows, gfirst, gsecond = (tensor.flatten(0, 1) for tensor in (x, gfirst, gsecond))
        gx = gweight = gmatrix = None
        with without_autocast(x.device):
            if ctx.needs_input_grad[0]:
                gx = (gfirst @ weight).addmm_(gsecond, matrix.T).view(x.shape)
            if ctx.needs_input_grad[1]:
                gweight = gfirst.T @ rows
            if ctx.needs_input_grad[2]:
                gmatrix = rows.T @ gsecond
        return gx, gweight, gmatrix
