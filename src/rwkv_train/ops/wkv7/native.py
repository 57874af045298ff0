"""WKV-7 by the project's own kernels: C++ on a CPU, CUDA on a GPU (`cuda/wkv7`).

Kept for the backward pass: the inputs, and the state at every CHECKPOINT_INTERVAL-th token. In
between the backward pass computes the states forwards again; it never recovers one by dividing by
decays.
"""

from __future__ import annotations

from torch import Tensor

from rwkv_train.ops.backends.dispatch import Call, Refusal
from rwkv_train.ops.native.custom_ops import SharedBytes, refusal
from rwkv_train.ops.native.head_ops import head_forward, head_registration

WKV7_SHARED_BYTES = SharedBytes(large_heads=179 << 10, chunks=99 << 10, segments=153 << 10)
_REGISTRATION = head_registration(
    "wkv7", v_at=3, w_at=1, shared_bytes=WKV7_SHARED_BYTES, has_bonus=True
)


def refuses(call: Call) -> Refusal | None:
    """Returns what stands in the way; None once the kernels are built and loaded."""
    return refusal(call, _REGISTRATION)


def run(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    base: Tensor | None,
    state: Tensor | None,
    reset: Tensor | None,
    *,
    bonus: Tensor | None = None,
    w_gradient: Tensor | None = None,
    with_state: bool = True,
    kernel: str = "",
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Returns outputs [B, T, H, N], final state [B, H, N_value, N_key] and s; see `wkv7`."""
    y, final_state, s = head_forward(
        "wkv7",
        (r, w, k, v, a, b, base, bonus),
        state,
        reset,
        w_gradient=w_gradient,
        with_state=with_state,
        kernel=kernel,
    )
    assert y is not None, "y is always wanted"
    return y, final_state, None if bonus is None else s
