"""The sigmoid gate by the project's own kernels: C++ on a CPU, CUDA on a GPU.

They lie in `cuda/sigmoid_gate`. Kept for the backward pass: the arguments.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rwkv_train.ops.backends.dispatch import Call, Refusal
from rwkv_train.ops.native.custom_ops import Registration, refusal
from rwkv_train.ops.native.differentiable import call_op


def _forward_fake(r: Tensor, y: Tensor) -> Tensor:
    return r.new_empty(r.shape)


def _backward_fake(go: Tensor, r: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return r.new_empty(r.shape), y.new_empty(y.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, go: Tensor) -> tuple[Tensor, Tensor]:
    gr, gy = torch.ops.rwkv.sigmoid_gate_backward(go, *ctx.saved_tensors)
    return gr, gy


_REGISTRATION = Registration(_forward_fake, _backward_fake, _setup_context, _backward)


def refuses(call: Call) -> Refusal | None:
    """Returns what stands in the way; None once the kernels are built and loaded."""
    return refusal(call, _REGISTRATION)


def run(r: Tensor, y: Tensor) -> Tensor:
    """Returns σ(r) y, [B, T, D]; see `sigmoid_gate.sigmoid_gate`."""
    gated: Tensor
    (gated,) = call_op("sigmoid_gate", r, y)
    return gated
