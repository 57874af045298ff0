"""WKV-6 as a plain token loop: the ground truth for the other backends."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rwkv_train.ops.backends.dispatch import serves_every_call
from rwkv_train.ops.precision import compute_dtype, decay_input, log_decay

refuses = serves_every_call


def run(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    base: Tensor | None,
    state: Tensor | None,
    reset: Tensor | None,
    *,
    w_gradient: Tensor | None = None,
    with_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Returns outputs [B, T, H, N] and final state [B, H, N_value, N_key]; gradients by autograd.

    Shapes as in `rwkv_train.ops.wkv6.wkv6`; w, u, base and state in the compute dtype.
    """
    decay = torch.exp(log_decay(decay_input(w, base, w_gradient)))  # [B, T, H, N]
    y, final_state = token_loop(r, k, v, lambda t: decay[:, t, :, None, :], u, state, reset)
    return y, final_state if with_state else None


def token_loop(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    decay_of: Callable[[int], Tensor],
    u: Tensor,
    state: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns what `run` does, for any decays.

    decay_of: the decay at a token, broadcastable to [B, H, N_value, N_key] along its key axis.
    """
    dtype = compute_dtype(v.dtype)
    rf, kf, vf = (tensor.to(dtype) for tensor in (r, k, v))
    batch, time, heads, size = v.shape
    s = rf.new_zeros(batch, heads, size, size) if state is None else state
    outputs = []
    for t in range(time):
        if reset is not None:
            s = s.masked_fill(reset[:, t, None, None, None], 0)
        bonus = (rf[:, t] * u * kf[:, t]).sum(-1, keepdim=True)  # [B, H, 1]
        outputs.append(torch.einsum("bhji,bhi->bhj", s, rf[:, t]) + bonus * vf[:, t])
        # s[j, i] with j the value channel: the decay acts on the key axis, the last one
        s = s * decay_of(t) + vf[:, t, :, :, None] * kf[:, t, :, None, :]
    return torch.stack(outputs, 1).to(v.dtype), s
