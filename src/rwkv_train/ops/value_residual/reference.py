"""The value residual by torch's own operators: the ground truth for the native kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_train.ops.backends.dispatch import serves_every_call
from rwkv_train.ops.precision import compute_dtype

refuses = serves_every_call


def run(
    value: Tensor, first: Tensor, logits: Tensor, base: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns v twice, [B, T, D] in the dtype of `value`, and `first`; gradients by autograd.

    base: [D] in the compute dtype.
    """
    dtype = compute_dtype(value.dtype)
    wide = value.to(dtype)
    share = torch.sigmoid(logits.to(dtype) + base)
    v = (wide + (first.to(dtype) - wide) * share).to(value.dtype)
    return v, v, first
