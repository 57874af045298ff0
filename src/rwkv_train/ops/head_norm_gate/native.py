"""The gated head norm by the project's own kernels: C++ and CUDA (`cuda/head_norm_gate`).

Kept for the backward pass: the arguments, and nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rwkv_train.ops.backends.dispatch import Call, Refusal
from rwkv_train.ops.native.custom_ops import Registration, SharedBytes, refusal
from rwkv_train.ops.native.differentiable import call_op


def _forward_fake(y: Tensor, g: Tensor, *_: Any) -> Tensor:
    return g.new_empty(g.shape)


def _backward_fake(
    go: Tensor,
    y: Tensor,
    g: Tensor,
    weight: Tensor,
    bias: Tensor,
    v: Tensor | None,
    s: Tensor | None,
    eps: float,
    silu: bool,
) -> tuple[Tensor, ...]:
    return (
        y.new_empty(y.shape),
        g.new_empty(g.shape),
        weight.new_empty(2, weight.shape[0]),
        y.new_empty(0 if v is None else v.shape),
        weight.new_empty(0 if s is None else s.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, eps, silu = inputs
    ctx.save_for_backward(*tensors)
    ctx.options = eps, silu


def _backward(ctx: Any, go: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    run = torch.ops.rwkv.head_norm_gate_backward
    gy, gg, gvectors, gv, gs = run(go, *tensors, *ctx.options)
    has_bonus = tensors[4] is not None
    bonus = (gv, gs) if has_bonus else (None, None)
    return (gy, gg, *gvectors.unbind(), *bonus, None, None)


# With shared memory of their own kernels over heads would have a size: these have none.
_REGISTRATION = Registration(
    _forward_fake,
    _backward_fake,
    _setup_context,
    _backward,
    SharedBytes(large_heads=0, chunks=0, segments=0),
)


def refuses(call: Call) -> Refusal | None:
    """Returns what stands in the way; None once the kernels are built and loaded."""
    return refusal(call, _REGISTRATION)


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
    """Returns o, [B, T, H N]; see `head_norm_gate.head_norm_gate`."""
    o: Tensor
    (o,) = call_op("head_norm_gate", y, g, weight, bias, v, s, eps, silu)
    return o
