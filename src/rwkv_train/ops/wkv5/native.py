"""WKV-5 by the project's own kernels: C++ on a CPU, CUDA on a GPU (`cuda/wkv5`).

Kept for the backward pass: the inputs, and the state at every CHECKPOINT_INTERVAL-th token.
In between the backward pass computes the states again and forms the decay's gradient from state
and gradient of the state directly, without subtracting sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_train.ops.backends.dispatch import Call, Refusal
from rwkv_train.ops.native.custom_ops import (
    KERNELS,
    checkpoint_interval,
    matrix_state_registration,
    refusal,
)

_REGISTRATION = matrix_state_registration("wkv5", v_at=2)


def refuses(call: Call) -> Refusal | None:
    """None once the kernels are built and loaded, else what stands in the way."""
    return refusal(call, _REGISTRATION)


def run(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    state: Tensor | None,
    reset: Tensor | None,
    kernel: str = "",
) -> tuple[Tensor, Tensor]:
    """Outputs [B, T, H, N] and final state [B, H, N_value, N_key]; see `wkv5.wkv5`."""
    every = checkpoint_interval(r, k, v, w, u, state)
    y, final_state, _ = torch.ops.rwkv.wkv5_forward(
        r, k, v, w, u, state, reset, every, KERNELS[kernel]
    )
    return y, final_state
