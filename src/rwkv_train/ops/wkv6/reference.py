"""WKV-6 as a plain token loop; the law that the other backends are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_train.ops.backends.dispatch import Call
from rwkv_train.ops.precision import compute_dtype, log_decay


def refuses(call: Call) -> str | None:
    """None: the loop serves every call."""
    return None


def run(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    state: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Outputs [B, T, H, N] and final state [B, H, N_value, N_key]; gradients by autograd.

    Shapes as in `rwkv_train.ops.wkv6.wkv6`; w, u and state in the compute dtype.
    """
    dtype = compute_dtype(v.dtype)
    rf, kf, vf = (tensor.to(dtype) for tensor in (r, k, v))
    decay = torch.exp(log_decay(w))
    batch, time, heads, size = v.shape
    s = rf.new_zeros(batch, heads, size, size) if state is None else state
    outputs = []
    for t in range(time):
        if reset is not None:
            s = s.masked_fill(reset[:, t, None, None, None], 0)
        bonus = (rf[:, t] * u * kf[:, t]).sum(-1, keepdim=True)  # [B, H, 1]
        outputs.append(torch.einsum("bhji,bhi->bhj", s, rf[:, t]) + bonus * vf[:, t])
        # s[j, i] with j the value channel: the decay acts on the key axis, the last one
        s = s * decay[:, t, :, None, :] + vf[:, t, :, :, None] * kf[:, t, :, None, :]
    return torch.stack(outputs, 1).to(v.dtype), s
