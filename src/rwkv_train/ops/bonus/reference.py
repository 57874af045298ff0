"""The bonus's weight by torch's own operators: the ground truth for the native kernels."""

from __future__ import annotations

from torch import Tensor

from rwkv_train.ops.backends.dispatch import serves_every_call
from rwkv_train.ops.precision import compute_dtype

refuses = serves_every_call


def run(r: Tensor, k: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns s, [B, T, H] in the compute dtype, and r and k themselves; gradients by autograd.

    weight: [H, N] in the compute dtype.
    """
    dtype = compute_dtype(r.dtype)
    return (r.to(dtype) * k.to(dtype) * weight).sum(-1), r, k
