"""The squared relu by the project's own kernels: C++ on a CPU, CUDA on a GPU.

They lie in `cuda/squared_relu`. Kept for the backward pass: p.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rwkv_train.ops.backends.dispatch import Call, Refusal
from rwkv_train.ops.native.custom_ops import Registration, refusal
from rwkv_train.ops.native.differentiable import call_op


def _forward_fake(p: Tensor) -> Tensor:
    return p.new_empty(p.shape)


def _backward_fake(gz: Tensor, p: Tensor) -> Tensor:
    return p.new_empty(p.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gz: Tensor) -> Tensor:
    gp: Tensor = torch.ops.rwkv.squared_relu_backward(gz, *ctx.saved_tensors)
    return gp


_REGISTRATION = Registration(_forward_fake, _backward_fake, _setup_context, _backward)


def refuses(call: Call) -> Refusal | None:
    """Returns what stands in the way; None once the kernels are built and loaded."""
    return refusal(call, _REGISTRATION)


def run(p: Tensor) -> Tensor:
    """Returns relu(p)², [B, T, F]; see `squared_relu.squared_relu`."""
    z: Tensor
    (z,) = call_op("squared_relu", p)
    return z
