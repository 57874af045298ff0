"""Products of a few vectors with a matrix by torch's own operators: the ground truth."""

from __future__ import annotations

from torch import Tensor

from rwkv_train.ops.backends.dispatch import serves_every_call
from rwkv_train.ops.precision import compute_dtype

refuses = serves_every_call


def run(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    """Returns x weightᵀ, [..., N], summed in fp32 (fp64)."""
    dtype = compute_dtype(x.dtype)
    y = x.to(dtype) @ weight.to(dtype).T
    return (y if scale is None else y * scale).to(x.dtype)
