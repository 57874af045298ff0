"""The bonus's weight by the project's own kernels: C++ on a CPU, CUDA on a GPU (`cuda/bonus`).

Kept for the backward pass: the arguments, and nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rwkv_train.ops.backends.dispatch import Call, Refusal
from rwkv_train.ops.native.custom_ops import Registration, SharedBytes, refusal


class _Bonus(torch.autograd.Function):
    """A Function, because an op of torch.library cannot hand on an argument."""

    @staticmethod
    def forward(ctx: Any, r: Tensor, k: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(r, k, weight)
        ctx.set_materialize_grads(False)
        return torch.ops.rwkv.bonus_forward(r, k, weight), r.view_as(r), k.view_as(k)

    @staticmethod
    def backward(
        ctx: Any, gs: Tensor | None, gr: Tensor | None, gk: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        # Only r and k were used, by the operator that they were handed on to.
        if gs is None:
            return gr, gk, None
        gradients: tuple[Tensor, ...] = torch.ops.rwkv.bonus_backward(
            gs, gr, gk, *ctx.saved_tensors
        )
        return gradients


def _forward_fake(r: Tensor, k: Tensor, weight: Tensor) -> Tensor:
    return weight.new_empty(r.shape[:3])


def _backward_fake(
    gs: Tensor,
    gr_carry: Tensor | None,
    gk_carry: Tensor | None,
    r: Tensor,
    k: Tensor,
    weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return r.new_empty(r.shape), k.new_empty(k.shape), weight.new_empty(weight.shape)


# No shared memory worth counting: it says that head sizes count.
_REGISTRATION = Registration(_forward_fake, _backward_fake, shared_bytes=SharedBytes(0, 0, 0))


def refuses(call: Call) -> Refusal | None:
    """Returns what stands in the way; None once the kernels are built and loaded."""
    return refusal(call, _REGISTRATION)


def run(r: Tensor, k: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns s, [B, T, H], and r and k handed on; see `bonus.bonus`."""
    s, r, k = _Bonus.apply(r, k, weight)  # type: ignore[no-untyped-call]  # torch's own
    return s, r, k
