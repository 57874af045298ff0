"""The custom ops of WKV-5, 6 and 7, whose schemas have the same form.

    forward(*inputs, *rows, w_gradient, state, reset, with_final_state, checkpoint_interval, kernel)
        -> (y, final_state, checkpoints, *more)
    backward(gy, gfinal_state, *gmore, *inputs, *rows, reset, checkpoints, with_gstate, gw_dtype,
             checkpoint_interval, kernel) -> (*gradients of inputs, *gradients of rows, gstate)

inputs: w, and what is [B, T, H, N] like v.  rows: [H, N] or None: base; of WKV-7 base and bonus,
and then `more` is s, [B, T, H]. A result that is not wanted has no elements.
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
from rwkv_train.ops.native.differentiable import call_op
from rwkv_train.ops.precision import compute_dtype


def head_registration(
    op: str, *, v_at: int, w_at: int, shared_bytes: SharedBytes, has_bonus: bool = False
) -> Registration:
    """Returns the registration of an operator with v [B, T, H, N] and a state [B, H, N, N].

    v_at, w_at: the numbers of v and w among the inputs.  has_bonus: as WKV-7 has it.
    """
    rows_given = 2 if has_bonus else 1

    def forward_fake(*arguments: Any) -> tuple[Tensor, ...]:
        v, with_final_state, every = arguments[v_at], *arguments[-3:-1]
        batch, time, heads, size = v.shape
        kept = kept_states(time, every)
        wide = v.new_empty(0, dtype=compute_dtype(v.dtype))
        results = (
            v.new_empty(v.shape),
            wide.new_empty((batch, heads, size, size) if with_final_state else 0),
            wide.new_empty(batch, heads, kept, size, size),
        )
        if not has_bonus:
            return results
        return *results, wide.new_empty(0 if arguments[-7] is None else (batch, time, heads))

    def backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
        *tensors, _, checkpoints, with_gstate, gw_dtype, _, _ = arguments[1 + rows_given :]
        inputs, rows = tensors[:-rows_given], tensors[-rows_given:]
        batch, _, heads, size = inputs[v_at].shape
        gradients = [tensor.new_empty(tensor.shape) for tensor in inputs]
        gradients[w_at] = gradients[w_at].to(gw_dtype)
        more = [checkpoints.new_empty(0 if row is None else row.shape) for row in rows]
        gstate = checkpoints.new_empty((batch, heads, size, size) if with_gstate else 0)
        return *gradients, *more, gstate

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, w_gradient, state, reset, with_final_state, every, kernel = inputs
        ctx.save_for_backward(*tensors, reset, output[2])
        ctx.given = [row is not None for row in tensors[-rows_given:]]
        ctx.has_state, ctx.with_final_state = state is not None, with_final_state
        ctx.gw_dtype = (tensors[w_at] if w_gradient is None else w_gradient).dtype
        ctx.has_w_gradient, ctx.launch = w_gradient is not None, (every, kernel)
        # An unused final state gives None and not a tensor of zeros.
        ctx.set_materialize_grads(False)

    def backward(
        ctx: Any, gy: Tensor | None, gfinal_state: Tensor | None, _: Tensor | None, *gs: Any
    ) -> tuple[Tensor | None, ...]:
        *tensors, reset, checkpoints = ctx.saved_tensors
        gy = torch.zeros_like(tensors[v_at]) if gy is None else gy
        # Of a result without elements there may be a gradient without elements.
        gfinal_state = gfinal_state if ctx.with_final_state else None
        gs = gs if ctx.given[-1] else (None,) * len(gs)
        options = (ctx.has_state, ctx.gw_dtype, *ctx.launch)
        run = getattr(torch.ops.rwkv, f"{op}_backward")
        found = run(gy, gfinal_state, *gs, *tensors, reset, checkpoints, *options)
        *gradients, gstate = found
        given = (*[True] * (len(gradients) - rows_given), *ctx.given)
        wanted = [gradient if is_given else None for gradient, is_given in zip(gradients, given)]
        instead = None
        if ctx.has_w_gradient:
            instead, wanted[w_at] = wanted[w_at], None
        return *wanted, instead, gstate if ctx.has_state else None, None, None, None, None

    return Registration(forward_fake, backward_fake, setup_context, backward, shared_bytes)


def head_forward(
    op: str,
    tensors: tuple[Tensor | None, ...],
    state: Tensor | None,
    reset: Tensor | None,
    *,
    w_gradient: Tensor | None,
    with_state: bool,
    kernel: str,
) -> tuple[Tensor | None, ...]:
    """Calls rwkv::<op>_forward; returns y, the final state, None without `with_state`, and `more`.

    tensors: inputs and rows.
    """
    every = checkpoint_interval(*tensors, w_gradient, state)
    options = (with_state, every, KERNELS[kernel])
    y, final_state, _, *more = call_op(op, *tensors, w_gradient, state, reset, *options)
    return y, final_state if with_state else None, *more
