"""RWKV-7's keys: what the state is written with and what is removed from it, in one pass.

Per token and head, with the rate A = sigmoid(logits + base) and p = key removal:

    u = p / max(|p|, 1e-12)                     the removal key, of unit length
    k = key (1 + (A - 1) replacement)           the replacement key
    a = -u      b = u A                         as `ops.wkv7` takes them

Computed in fp32 (fp64), each result rounded once. The gradients of the three vectors are sums over
tokens in an order of their own, which depends on the shape alone.

| backend     | serves                                            | memory kept for backward    |
|-------------|---------------------------------------------------|-----------------------------|
| `native`    | C++ on the CPU, CUDA on the GPU; needs a compiler | the arguments               |
| `reference` | any device, torch operators one by one            | about eight fp32 sequences  |

Source: RWKV-7 paper (Goose), architecture section.
"""

from __future__ import annotations

from torch import Tensor

from rwkv_train.ops.arguments import check_sequences, describe_call, prepare
from rwkv_train.ops.backends.dispatch import AUTO, backends_of, dispatch

BACKENDS = backends_of("keys", "native", "reference")


def keys(
    key: Tensor,
    logits: Tensor,
    base: Tensor,
    removal: Tensor,
    replacement: Tensor,
    *,
    backend: str = AUTO,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns k, a and b, each [B, T, H, N] in the dtype of `key`.

    key, logits: [B, T, H, N], one of fp32, bf16, fp16, fp64; logits are those of the rate, without
        the base.
    base, removal, replacement: [H N], any float dtype; a0, k_k and k_a of the checkpoints.

    Gradients flow to every argument. Raises BackendError when an argument does not fit or the
    backend asked for cannot serve the call.
    """
    like = check_sequences("keys", {"key": key, "logits": logits}, "[B, T, H, N]")
    heads = tuple(like.shape[2:])
    vectors = (
        prepare("keys", name, vector, (heads[0] * heads[1],), like).view(heads)
        for name, vector in (("base", base), ("removal", removal), ("replacement", replacement))
    )
    tensors = (key, logits, *vectors)
    call = describe_call("keys", like, tensors, has_state=False, has_reset=False)
    k, a, b = dispatch(BACKENDS, backend, call, tensors)
    return k, a, b
