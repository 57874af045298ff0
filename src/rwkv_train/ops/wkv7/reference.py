"""WKV-7 as a plain token loop: the ground truth for the other backends."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rwkv_train.ops.backends.dispatch import serves_every_call
from rwkv_train.ops.precision import compute_dtype, decay_input

refuses = serves_every_call

# The slowest and the fastest decay of RWKV-7 are exp(0) and exp(-LARGEST_RATE).
LARGEST_RATE = math.exp(-0.5)


def run(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    base: Tensor | None,
    state: Tensor | None,
    reset: Tensor | None,
    *,
    bonus: Tensor | None = None,
    w_gradient: Tensor | None = None,
    with_state: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Returns outputs [B, T, H, N], final state [B, H, N_value, N_key] and s.

    Gradients by autograd.

    Shapes as in `rwkv_train.ops.wkv7.wkv7`; w, base, bonus and state in the compute dtype.
    s: [B, T, H], None without bonus.
    """
    dtype = compute_dtype(v.dtype)
    rf, kf, vf, af, bf = (tensor.to(dtype) for tensor in (r, k, v, a, b))
    rf, kf, weights = with_bonus(rf, kf, bonus)
    w = decay_input(w, base, w_gradient)
    # Through the logarithm, since autograd's s (1 - s) loses the digits of 1 - s for large w.
    decay = torch.exp(-LARGEST_RATE * torch.exp(torch.nn.functional.logsigmoid(w)))
    batch, time, heads, size = v.shape
    s = rf.new_zeros(batch, heads, size, size) if state is None else state
    outputs = []
    for t in range(time):
        if reset is not None:
            s = s.masked_fill(reset[:, t, None, None, None], 0)
        removed = torch.einsum("bhji,bhi->bhj", s, af[:, t])
        s = (
            s * decay[:, t, :, None, :]
            + removed[..., :, None] * bf[:, t, :, None, :]
            + vf[:, t, :, :, None] * kf[:, t, :, None, :]
        )
        outputs.append(torch.einsum("bhji,bhi->bhj", s, rf[:, t]))
    return torch.stack(outputs, 1).to(v.dtype), s if with_state else None, weights


def with_bonus(r: Tensor, k: Tensor, bonus: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns r and k as the recurrence is to read them, and s, [B, T, H]; None without a bonus.

    r, k: [B, T, H, N].  bonus: [H, N] in the compute dtype, which r and k then have too: what both
    uses bring to their gradients is added before it is rounded.
    """
    if bonus is None:
        return r, k, None
    r, k = r.to(bonus.dtype), k.to(bonus.dtype)
    return r, k, (r * k * bonus).sum(-1)
