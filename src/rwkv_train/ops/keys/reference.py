"""RWKV-7's keys by torch's own operators: the ground truth for the native kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_train.ops.backends.dispatch import serves_every_call
from rwkv_train.ops.precision import compute_dtype

SHORTEST = 1e-12

refuses = serves_every_call


def run(
    key: Tensor, logits: Tensor, base: Tensor, removal: Tensor, replacement: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns k, a and b, [B, T, H, N] in the dtype of `key`; gradients by autograd.

    base, removal, replacement: [H, N] in the compute dtype.
    """
    dtype = compute_dtype(key.dtype)
    wide = key.to(dtype)
    rate = torch.sigmoid(logits.to(dtype) + base)
    unit = F.normalize(wide * removal, dim=-1, eps=SHORTEST)
    k = wide * (1 + (rate - 1) * replacement)
    return k.to(key.dtype), -unit.to(key.dtype), (unit * rate).to(key.dtype)
