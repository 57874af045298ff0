"""The sigmoid gate by torch's own operators: the ground truth for the native kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_train.ops.backends.dispatch import serves_every_call
from rwkv_train.ops.precision import compute_dtype

refuses = serves_every_call


def run(r: Tensor, y: Tensor) -> Tensor:
    """Returns σ(r) y, [B, T, D]; gradients by autograd."""
    wide = compute_dtype(r.dtype)
    return (torch.sigmoid(r.to(wide)) * y.to(wide)).to(r.dtype)
