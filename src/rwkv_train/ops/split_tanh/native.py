"""The split tanh by the project's own kernels: C++ on a CPU (`cuda/split_tanh`).

Kept for the backward pass: the result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rwkv_train.ops.backends.dispatch import Call, Refusal
from rwkv_train.ops.native.custom_ops import Registration, refusal
from rwkv_train.ops.native.differentiable import call_op


def _forward_fake(x: Tensor, parts: int) -> Tensor:
    batch, time, width = x.shape
    return x.new_empty(parts, batch, time, width // parts)


def _backward_fake(gy: Tensor, y: Tensor) -> Tensor:
    parts, batch, time, rank = y.shape
    return y.new_empty(batch, time, parts * rank)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output)


def _backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None]:
    gx: Tensor = torch.ops.rwkv.split_tanh_backward(gy, *ctx.saved_tensors)
    return gx, None


_REGISTRATION = Registration(_forward_fake, _backward_fake, _setup_context, _backward)


def refuses(call: Call) -> Refusal | None:
    """Returns what stands in the way; None once the kernels are built and loaded."""
    return refusal(call, _REGISTRATION)


def run(x: Tensor, parts: int) -> Tensor:
    """Returns tanh(x), [n, B, T, R]; see `split_tanh.split_tanh`."""
    y: Tensor
    (y,) = call_op("split_tanh", x, parts)
    return y
