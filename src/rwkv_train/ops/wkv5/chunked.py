"""WKV-5 by matrix products over chunks of tokens: WKV-6 with the same decay at every token."""

from __future__ import annotations

from torch import Tensor

from rwkv_train.ops.backends.dispatch import serves_every_call
from rwkv_train.ops.wkv6 import chunked as wkv6_chunked

refuses = serves_every_call


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
) -> tuple[Tensor, Tensor | None]:
    """Returns outputs [B, T, H, N] and final state [B, H, N_value, N_key].

    Shapes as in `rwkv_train.ops.wkv5.wkv5`; w, u and state in the compute dtype.
    """
    # A view: the expanded decay takes no memory, and autograd sums its gradient over B and T.
    whole = w.expand(v.shape)
    return wkv6_chunked.run(r, k, v, whole, u, None, state, reset, with_state=with_state)
