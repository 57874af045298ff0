"""WKV-5 by the project's own kernels: C++ on a CPU, CUDA on a GPU (`cuda/wkv5`).

The kernels are those of WKV-6 with a constant decay (`cuda/wkv5_6`), built as an operator of their
own: `wkv6/native.py` tells what is kept for the backward pass.
"""

from __future__ import annotations

from torch import Tensor

from rwkv_train.ops.backends.dispatch import Call, Refusal
from rwkv_train.ops.native.custom_ops import refusal
from rwkv_train.ops.native.head_ops import head_forward, head_registration
from rwkv_train.ops.wkv6.native import WKV6_SHARED_BYTES

_REGISTRATION = head_registration("wkv5", v_at=2, w_at=3, shared_bytes=WKV6_SHARED_BYTES)


def refuses(call: Call) -> Refusal | None:
    """Returns what stands in the way; None once the kernels are built and loaded."""
    return refusal(call, _REGISTRATION)


def run(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    state: Tensor | None,
    reset: Tensor | None,
    *,
    with_state: bool = True,
    kernel: str = "",
) -> tuple[Tensor, Tensor | None]:
    """Returns outputs [B, T, H, N] and final state [B, H, N_value, N_key]; see `wkv5.wkv5`."""
    y, final_state = head_forward(
        "wkv5",
        (r, k, v, w, u, None),
        state,
        reset,
        w_gradient=None,
        with_state=with_state,
        kernel=kernel,
    )
    assert y is not None, "y is always wanted"
    return y, final_state
