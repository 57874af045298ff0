"""WKV-4 by the project's own kernels: C++ on a CPU, CUDA on a GPU (`cuda/wkv4`).

Kept for the backward pass: the inputs, and the state at every WKV4_CHECKPOINT_INTERVAL-th token.
In between the backward pass computes the states again; no exponent of it is ever above zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwkv_train.ops.backends.dispatch import Call, Refusal
from rwkv_train.ops.native.custom_ops import refusal, registration
from rwkv_train.ops.native.differentiable import forward

# A state is three numbers per channel, so that it may be kept often: 0.75 bytes per token and
# channel.
WKV4_CHECKPOINT_INTERVAL = 16


def _state_shape(v: Sequence[int], kept: int) -> tuple[int, ...]:
    return v[0], 3, v[2]


def _checkpoint_shape(v: Sequence[int], kept: int) -> tuple[int, ...]:
    return v[0], kept, 3, v[2]


_REGISTRATION = registration(
    "wkv4", v_at=3, state_shape=_state_shape, checkpoint_shape=_checkpoint_shape
)


def refuses(call: Call) -> Refusal | None:
    """Returns what stands in the way; None once the kernels are built and loaded."""
    return refusal(call, _REGISTRATION)


def run(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    state: tuple[Tensor, Tensor, Tensor] | None,
    reset: Tensor | None,
    kernel: str = "",
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Returns outputs [B, T, A] and final state (aa, bb, pp), each [B, A]; see `wkv4.wkv4`."""
    rows = None if state is None else torch.stack(state, 1)  # [B, 3, A]
    y, final_rows = forward(
        "wkv4", (w, u, k, v), rows, reset, kernel, interval=WKV4_CHECKPOINT_INTERVAL
    )
    aa, bb, pp = final_rows.unbind(1)
    # pp is a scale: gradients of aa and bb are taken with it held constant.
    return y, (aa, bb, pp.detach())
