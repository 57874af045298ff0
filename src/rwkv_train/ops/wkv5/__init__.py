"""WKV-5, the recurrence of RWKV-5 (x052): a matrix state per head with a learned constant decay.

Per batch row and head, with S indexed [key i, value j] and d = exp(-exp(w)) in (0, 1):

    y_t[j]   = sum_i r_t[i] ( S[i, j] + u[i] k_t[i] v_t[j] )        reads S before token t
    S[i, j] <- d[i] S[i, j] + k_t[i] v_t[j]

This is WKV-6 with the same decay at every token. In storage the state is transposed,
[B, H, N_value, N_key], as for WKV-6 and WKV-7.

| backend     | serves                                             | memory kept for backward      |
|-------------|----------------------------------------------------|-------------------------------|
| `native`    | C++ on the CPU, CUDA on the GPU; needs a compiler  | see its docstring             |
| `chunked`   | any device, torch matmuls over chunks of tokens    | inputs and one state per chunk|
| `reference` | any device, a token loop under autograd            | several states per token      |

Source: RWKV-6 paper (Eagle and Finch), section on the Eagle time mix.
"""

from __future__ import annotations

from torch import Tensor

from rwkv_train.ops.arguments import check_sequences, prepare, run_heads
from rwkv_train.ops.backends.dispatch import AUTO, MATRIX_STATE_BACKENDS, backends_of

BACKENDS = backends_of("wkv5", *MATRIX_STATE_BACKENDS)


def wkv5(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    state: Tensor | None = None,
    *,
    with_state: bool = True,
    backend: str = AUTO,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Returns outputs y [B, T, H, N] in v's dtype and the final state [B, H, N_value, N_key].

    r, k, v: [B, T, H, N], one of fp32, bf16, fp16, fp64.
    w: [H, N], any float dtype; the parameter `time_decay`, before the double exponential.
    u: [H, N], any float dtype; the parameter `time_faaaa`, the bonus of the current token.
    state: [B, H, N_value, N_key] or None for zero. States are fp32 (fp64 for fp64 inputs).
    with_state: whether the final state is wanted; without it None is returned in its place.
    reset: [B, T] bool; True where a document starts: the state is zero before that token.

    Gradients flow to every float argument, also through the final state. Raises BackendError when
    an argument does not fit or the backend asked for cannot serve the call.
    """
    like = check_sequences("wkv5", {"r": r, "k": k, "v": v}, "[B, T, H, N]")
    w = prepare("wkv5", "w", w, tuple(like.shape[2:]), like)
    u = prepare("wkv5", "u", u, tuple(like.shape[2:]), like)
    y, final_state = run_heads(
        "wkv5", BACKENDS, backend, (r, k, v, w, u), state, reset, with_state=with_state
    )
    return y, final_state
