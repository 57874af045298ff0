"""WKV-7 by the project's own kernels: C++ on a CPU, CUDA on a GPU (`cuda/wkv7`).

Kept for the backward pass: the inputs, and the state at every CHECKPOINT_INTERVAL-th token.
In between the backward pass computes the states forwards again; it never recovers one by
dividing by decays.
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

_REGISTRATION = matrix_state_registration("wkv7", v_at=3)


def refuses(call: Call) -> Refusal | None:
    """None once the kernels are built and loaded, else what stands in the way."""
    return refusal(call, _REGISTRATION)


def run(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None,
    reset: Tensor | None,
    kernel: str = "",
) -> tuple[Tensor, Tensor]:
    """Outputs [B, T, H, N] and final state [B, H, N_value, N_key]; see `wkv7.wkv7`."""
    every = checkpoint_interval(r, w, k, v, a, b, state)
    y, final_state, _ = torch.ops.rwkv.wkv7_forward(
        r, w, k, v, a, b, state, reset, every, KERNELS[kernel]
    )
    return y, final_state
