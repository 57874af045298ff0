"""RWKV-7's keys by the project's own kernels: C++ on a CPU, CUDA on a GPU (`cuda/keys`).

Kept for the backward pass: the arguments, and nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rwkv_train.ops.backends.dispatch import Call, Refusal
from rwkv_train.ops.native.custom_ops import Registration, SharedBytes, refusal
from rwkv_train.ops.native.differentiable import call_op


def _forward_fake(
    key: Tensor, logits: Tensor, base: Tensor, removal: Tensor, replacement: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return key.new_empty(key.shape), key.new_empty(key.shape), key.new_empty(key.shape)


def _backward_fake(
    gk: Tensor | None,
    ga: Tensor | None,
    gb: Tensor | None,
    key: Tensor,
    logits: Tensor,
    base: Tensor,
    removal: Tensor,
    replacement: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    gvectors = base.new_empty(3, *base.shape)
    return key.new_empty(key.shape), key.new_empty(key.shape), gvectors


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs)
    # A result that nothing was computed from gives None, which the kernel does not read.
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, gk: Tensor | None, ga: Tensor | None, gb: Tensor | None
) -> tuple[Tensor, ...]:
    gkey, glogits, gvectors = torch.ops.rwkv.keys_backward(gk, ga, gb, *ctx.saved_tensors)
    return gkey, glogits, *gvectors.unbind()


# No shared memory worth counting: it says that head sizes count.
_REGISTRATION = Registration(
    _forward_fake, _backward_fake, _setup_context, _backward, SharedBytes(0, 0, 0)
)


def refuses(call: Call) -> Refusal | None:
    """Returns what stands in the way; None once the kernels are built and loaded."""
    return refusal(call, _REGISTRATION)


def run(
    key: Tensor, logits: Tensor, base: Tensor, removal: Tensor, replacement: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns k, a and b, [B, T, H, N] in the dtype of `key`; see `keys.keys`."""
    k, a, b = call_op("keys", key, logits, base, removal, replacement)
    return k, a, b
