"""The custom ops of WKV-5, 6 and 7, whose schemas have the same form.

    forward(*inputs, base, w_gradient, state, reset, with_final_state, checkpoint_interval, kernel)
        -> (y, final_state, checkpoints)
    backward(gy, gfinal_state, *inputs, base, reset, checkpoints, with_gstate, gw_dtype,
             checkpoint_interval, kernel) -> (*gradients of inputs, gbase, gstate)

A result that is not wanted has no elements. inputs: v and its like [B, T, H, N], w, and [H, N].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rwkv_train.ops.native.custom_ops import (
    KERNELS,
    Registration,
    SharedBytes,
    checkpoint_interval,
    kept_states,
)
from rwkv_train.ops.precision import compute_dtype


def head_registration(op: str, *, v_at: int, w_at: int, shared_bytes: SharedBytes) -> Registration:
    """Returns the registration of an operator with v [B, T, H, N] and a state [B, H, N, N].

    v_at, w_at: the numbers of v and w among the inputs.
    """

    def forward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        v, with_final_state, every = arguments[v_at], *arguments[-3:-1]
        batch, time, heads, size = v.shape
        kept = kept_states(time, every)
        wide = v.new_empty(0, dtype=compute_dtype(v.dtype))
        final_state = wide.new_empty(batch, heads, size, size) if with_final_state else wide
        return (v.new_empty(v.shape), final_state, wide.new_empty(batch, heads, kept, size, size))

    def backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
        _, _, *inputs, base, _, checkpoints, with_gstate, gw_dtype, _, _ = arguments
        batch, _, heads, size = inputs[v_at].shape
        gradients = [tensor.new_empty(tensor.shape) for tensor in inputs]
        gradients[w_at] = gradients[w_at].to(gw_dtype)
        gbase = checkpoints.new_empty(0 if base is None else base.shape)
        gstate = checkpoints.new_empty((batch, heads, size, size) if with_gstate else 0)
        return *gradients, gbase, gstate

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, base, w_gradient, state, reset, with_final_state, every, kernel = inputs
        ctx.save_for_backward(*tensors, base, reset, output[2])
        ctx.has_base, ctx.has_state = base is not None, state is not None
        ctx.with_final_state = with_final_state
        ctx.gw_dtype = (tensors[w_at] if w_gradient is None else w_gradient).dtype
        ctx.has_w_gradient, ctx.launch = w_gradient is not None, (every, kernel)
        # An unused final state gives None and not a tensor of zeros.
        ctx.set_materialize_grads(False)

    def backward(
        ctx: Any, gy: Tensor | None, gfinal_state: Tensor | None, _: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        *inputs, base, reset, checkpoints = ctx.saved_tensors
        gy = torch.zeros_like(inputs[v_at]) if gy is None else gy
        run = getattr(torch.ops.rwkv, f"{op}_backward")
        gfinal_state = gfinal_state if ctx.with_final_state else None
        options = (ctx.has_state, ctx.gw_dtype, *ctx.launch)
        *gradients, gbase, gstate = run(
            gy, gfinal_state, *inputs, base, reset, checkpoints, *options
        )
        instead = None
        if ctx.has_w_gradient:
            instead, gradients[w_at] = gradients[w_at], None
        parts = (gbase if ctx.has_base else None, instead, gstate if ctx.has_state else None)
        return *gradients, *parts, None, None, None, None

    return Registration(forward_fake, backward_fake, setup_context, backward, shared_bytes)


def head_forward(
    op: str,
    inputs: tuple[Tensor, ...],
    base: Tensor | None,
    state: Tensor | None,
    reset: Tensor | None,
    *,
    w_gradient: Tensor | None,
    with_state: bool,
    kernel: str,
) -> tuple[Tensor, Tensor | None]:
    """Calls rwkv::<op>_forward; returns y and the final state, None without `with_state`."""
    every = checkpoint_interval(*inputs, base, w_gradient, state)
    run = getattr(torch.ops.rwkv, f"{op}_forward")
    options = (with_state, every, KERNELS[kernel])
    y, final_state, _ = run(*inputs, base, w_gradient, state, reset, *options)
    return y, final_state if with_state else None
