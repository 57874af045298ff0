"""The gated head norm by torch's own operators: the ground truth for the native kernels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from rwkv_train.ops.backends.dispatch import serves_every_call
from rwkv_train.ops.precision import compute_dtype

refuses = serves_every_call


def run(
    y: Tensor,
    g: Tensor,
    weight: Tensor,
    bias: Tensor,
    v: Tensor | None,
    s: Tensor | None,
    eps: float,
    silu: bool,
) -> Tensor:
    """Returns o, [B, T, H N]; gradients by autograd.

    Shapes as in `rwkv_train.ops.head_norm_gate.head_norm_gate`; weight, bias and s in the compute
    dtype.
    """
    dtype = compute_dtype(y.dtype)
    # A layer norm over the last axis is the group norm, without moving heads to channels.
    normal = F.layer_norm(y.to(dtype), y.shape[-1:], eps=eps).flatten(2)
    mixed = normal * weight + bias
    if v is not None and s is not None:
        mixed = mixed + (s.unsqueeze(-1) * v).flatten(2)
    gate = g.to(dtype)
    return (mixed * (F.silu(gate) if silu else gate)).to(y.dtype)
