"""WKV-6 by the project's own kernels: C++ on a CPU, CUDA on a GPU (`cuda/wkv6`).

Kept for the backward pass: the inputs, and the state at every KEEP_EVERY-th token. In between the
backward pass computes the states again and forms the decay's gradient from state and gradient of
the state directly, without subtracting sums.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from src.ops.custom_ops import Registration, keep_every, kept_states, refusal
from src.ops.dispatch import Call, Refusal


def refuses(call: Call) -> Refusal | None:
    """None once the kernels are built and loaded, else what stands in the way."""
    return refusal(call, _REGISTRATION)


def run(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    state: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Outputs [B, T, H, N] and final state [B, H, N_value, N_key]; see `src.ops.wkv6.wkv6`."""
    every = keep_every(r, k, v, w, u, state)
    y, final_state, _ = torch.ops.rwkv.wkv6_forward(r, k, v, w, u, state, reset, every)
    return y, final_state


def _forward_fake(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    state: Tensor | None,
    reset: Tensor | None,
    keep_every: int,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, time, heads, size = v.shape
    kept = kept_states(time, keep_every)
    return (
        v.new_empty(v.shape),
        u.new_empty(batch, heads, size, size),
        u.new_empty(batch, heads, kept, size, size),
    )


def _backward_fake(
    gy: Tensor,
    gfinal_state: Tensor | None,
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    reset: Tensor | None,
    checkpoints: Tensor,
    keep_every: int,
) -> tuple[Tensor, ...]:
    batch, _, heads, size = v.shape
    gradients = tuple(tensor.new_empty(tensor.shape) for tensor in (r, k, v, w, u))
    return *gradients, u.new_empty(batch, heads, size, size)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    r, k, v, w, u, state, reset, every = inputs
    ctx.save_for_backward(r, k, v, w, u, reset, output[2])
    ctx.has_state, ctx.every = state is not None, every
    # An unused final state gives None and not a tensor of zeros.
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, gy: Tensor | None, gfinal_state: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    r, k, v, w, u, reset, checkpoints = ctx.saved_tensors
    gy = torch.zeros_like(v) if gy is None else gy
    *gradients, gstate = torch.ops.rwkv.wkv6_backward(
        gy, gfinal_state, r, k, v, w, u, reset, checkpoints, ctx.every
    )
    return *gradients, gstate if ctx.has_state else None, None, None


_REGISTRATION = Registration(_forward_fake, _backward_fake, _setup_context, _backward)
