"""WKV-4, the recurrence of RWKV-4: a decayed weighted mean per channel.

Per batch row and channel, with log-decay l = -exp(w) < 0 and a, b the sums over earlier tokens:

    y_t = ( a + exp(u + k_t) v_t ) / ( b + exp(u + k_t) )           reads a, b before token t
    a  <- exp(l) a + exp(k_t) v_t
    b  <- exp(l) b + exp(k_t)

The sums are kept scaled, a = aa exp(pp) and b = bb exp(pp), with pp the largest exponent so far, so
that nothing overflows for any k. The state is the tuple (aa, bb, pp); the empty state is
(0, 0, -1e38), for which sums of zero with any pp are taken too. pp is a scale, not an independent
quantity: the final pp carries no gradient, and a gradient of the final aa and bb is taken with pp
held constant.

| backend     | serves                                             | memory kept for backward      |
|-------------|----------------------------------------------------|-------------------------------|
| `native`    | C++ on the CPU, CUDA on the GPU; needs a compiler  | see its docstring             |
| `chunked`   | any device, all chunks of tokens stepped together  | inputs and one state per chunk|
| `reference` | any device, a token loop under autograd            | several states per token      |

Source: RWKV paper (Reinventing RNNs for the Transformer Era), section on the time mix.
"""

from __future__ import annotations

from torch import Tensor

from rwkv_train.errors import BackendError
from rwkv_train.ops.arguments import check_reset, check_sequences, describe_call, prepare
from rwkv_train.ops.backends.dispatch import AUTO, backends_of, dispatch
from rwkv_train.ops.wkv4.reference import EMPTY, Sums

BACKENDS = backends_of("wkv4", "native", "chunked", "reference", "native:scan", "native:wide")

State = Sums


def wkv4(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    state: State | None = None,
    *,
    backend: str = AUTO,
    reset: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Returns outputs y [B, T, A] in v's dtype and the final state (aa, bb, pp), each [B, A].

    w: [A], any float dtype; the parameter `time_decay`, before the double exponential.
    u: [A], any float dtype; the parameter `time_first`, which stands in for the decay at the
        current token.
    k, v: [B, T, A], one of fp32, bf16, fp16, fp64.
    state: (aa, bb, pp), each [B, A], or None for empty. States are fp32 (fp64 for fp64 inputs).
    reset: [B, T] bool; True where a document starts: the state is empty before that token.

    Gradients flow to every float argument, also through the final aa and bb. Raises BackendError
    when an argument does not fit or the backend asked for cannot serve the call.
    """
    like = check_sequences("wkv4", {"k": k, "v": v}, "[B, T, A]")
    batch, _, width = like.shape
    w = prepare("wkv4", "w", w, (width,), like)
    u = prepare("wkv4", "u", u, (width,), like)
    parts: State | None = None
    if state is not None:
        if not isinstance(state, tuple) or len(state) != 3:
            raise BackendError(
                f"wkv4: state is {type(state).__name__}, expected None or a tuple (aa, bb, pp)"
            )
        aa, bb, pp = (
            prepare("wkv4", f"state {name}", part, (batch, width), like)
            for name, part in zip(("aa", "bb", "pp"), state)
        )
        # Sums of nothing have no scale: with pp = 0 they would outweigh every small exponent, and
        # where exp(k) rounds to 0 next to them, y would be 0 / 0.
        parts = (aa, bb, pp.masked_fill((aa == 0) & (bb == 0), EMPTY))
    check_reset("wkv4", reset, like)
    call = describe_call(
        "wkv4",
        like,
        (w, u, k, v, *(parts or ())),
        has_state=state is not None,
        has_reset=reset is not None,
    )
    y, final_state = dispatch(BACKENDS, backend, call, (w, u, k, v, parts, reset))
    return y, final_state
