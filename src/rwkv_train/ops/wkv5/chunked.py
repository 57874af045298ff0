"""WKV-5 by matrix products over chunks of tokens: WKV-6 with the same decay at every token."""

from __future__ import annotations

from torch import Tensor

from rwkv_train.ops.backends.dispatch import Call
from rwkv_train.ops.wkv6 import chunked as wkv6_chunked


def refuses(call: Call) -> str | None:
    """None: torch's own operators serve every call."""
    return None


def run(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    state: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Outputs [B, T, H, N] and final state [B, H, N_value, N_key].

    Shapes as in `rwkv_train.ops.wkv5.wkv5`; w, u and state in the compute dtype.
    """
    # A view: the expanded decay takes no memory, and autograd sums its gradient over B and T.
    return wkv6_chunked.run(r, k, v, w.expand(v.shape), u, state, reset)
