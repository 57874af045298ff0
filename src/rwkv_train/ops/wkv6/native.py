"""WKV-6 by the project's own kernels: C++ on a CPU, CUDA on a GPU (`cuda/wkv6`).

Kept for the backward pass: the inputs, and the state at every CHECKPOINT_INTERVAL-th token. In
between the backward pass computes the states again and forms the decay's gradient from state and
gradient of the state directly, without subtracting sums.
"""

from __future__ import annotations

from torch import Tensor

from rwkv_train.ops.backends.dispatch import Call, Refusal
from rwkv_train.ops.native.custom_ops import SharedBytes, refusal
from rwkv_train.ops.native.head_ops import head_forward, head_registration

WKV6_SHARED_BYTES = SharedBytes(large_heads=170 << 10, chunks=82 << 10, segments=82 << 10)
_REGISTRATION = head_registration("wkv6", v_at=2, w_at=3, shared_bytes=WKV6_SHARED_BYTES)


def refuses(call: Call) -> Refusal | None:
    """Returns what stands in the way; None once the kernels are built and loaded."""
    return refusal(call, _REGISTRATION)


def run(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    base: Tensor | None,
    state: Tensor | None,
    reset: Tensor | None,
    *,
    w_gradient: Tensor | None = None,
    with_state: bool = True,
    kernel: str = "",
) -> tuple[Tensor, Tensor | None]:
    """Returns outputs [B, T, H, N] and final state [B, H, N_value, N_key]; see `wkv6.wkv6`."""
    y, final_state = head_forward(
        "wkv6",
        (r, k, v, w, u, base),
        state,
        reset,
        w_gradient=w_gradient,
        with_state=with_state,
        kernel=kernel,
    )
    assert y is not None, "y is always wanted"
    return y, final_state
