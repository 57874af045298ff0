"""The value residual by the project's own kernels: C++ on a CPU, CUDA on a GPU.

Kept for the backward pass: the arguments, and nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rwkv_train.ops.backends.dispatch import Call, Refusal
from rwkv_train.ops.native.custom_ops import Registration, refusal

# Of a thread of the CUDA kernels, which fetch them as 16 bytes.
CHANNELS_OF_THREAD = 8


class _ValueResidual(torch.autograd.Function):
    """A Function, because an op of torch.library cannot hand on an argument."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, first: Tensor, logits: Tensor, base: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(value, first, logits, base)
        ctx.set_materialize_grads(False)
        v = torch.ops.rwkv.value_residual_forward(value, first, logits, base)
        return v, v.view_as(v), first.view_as(first)

    @staticmethod
    def backward(
        ctx: Any, gv: Tensor | None, gagain: Tensor | None, gcarry: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if gv is None:
            gv, gagain = gagain, None
        # Only the first layer's value was used, by a later layer.
        if gv is None:
            return None, gcarry, None, None
        gradients: tuple[Tensor, ...] = torch.ops.rwkv.value_residual_backward(
            gv, gagain, gcarry, *ctx.saved_tensors
        )
        return gradients


def _forward_fake(value: Tensor, first: Tensor, logits: Tensor, base: Tensor) -> Tensor:
    return value.new_empty(value.shape)


def _backward_fake(
    gv: Tensor,
    gagain: Tensor | None,
    gcarry: Tensor | None,
    value: Tensor,
    first: Tensor,
    logits: Tensor,
    base: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gvalue, gfirst, glogits = (value.new_empty(value.shape) for _ in range(3))
    return gvalue, gfirst, glogits, base.new_empty(base.shape)


_REGISTRATION = Registration(_forward_fake, _backward_fake)


def refuses(call: Call) -> Refusal | None:
    """Returns what stands in the way; None once the kernels are built and loaded."""
    if call.device.type == "cuda" and call.heads % CHANNELS_OF_THREAD:
        return Refusal(
            f"its CUDA kernels serve widths that are multiples of {CHANNELS_OF_THREAD}, not "
            f"{call.heads}"
        )
    return refusal(call, _REGISTRATION)


def run(
    value: Tensor, first: Tensor, logits: Tensor, base: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns v twice, [B, T, D], and `first` handed on; see `value_residual.value_residual`."""
    v, again, handed_on = _ValueResidual.apply(  # type: ignore[no-untyped-call]  # torch's own
        value, first, logits, base
    )
    return v, again, handed_on
