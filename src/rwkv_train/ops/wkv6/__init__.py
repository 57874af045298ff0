"""WKV-6, the recurrence of RWKV-6: a matrix state per head, decayed by the data.

Per batch row and head, with S indexed [key i, value j] and d_t = exp(-exp(w_t)) in (0, 1):

    y_t[j]   = sum_i r_t[i] ( S[i, j] + u[i] k_t[i] v_t[j] )        reads S before token t
    S[i, j] <- d_t[i] S[i, j] + k_t[i] v_t[j]

The decay of token t acts on what came before it and does not touch y_t; the token itself enters S
undecayed. In storage the state is transposed, [B, H, N_value, N_key], as in the checkpoints.

| backend     | serves                                             | memory kept for backward      |
|-------------|----------------------------------------------------|-------------------------------|
| `native`    | C++ on the CPU, CUDA on the GPU; needs a compiler  | see its docstring             |
| `chunked`   | any device, torch matmuls over chunks of tokens    | inputs and one state per chunk|
| `reference` | any device, a token loop under autograd            | several states per token      |

Source: RWKV-6 paper (Eagle and Finch), section on the Finch time mix.
"""

from __future__ import annotations

from torch import Tensor

from rwkv_train.ops.arguments import check_sequences, check_w_gradient, prepare, run_heads
from rwkv_train.ops.backends.dispatch import AUTO, MATRIX_STATE_BACKENDS, backends_of

BACKENDS = backends_of("wkv6", *MATRIX_STATE_BACKENDS)


def wkv6(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    state: Tensor | None = None,
    *,
    base: Tensor | None = None,
    w_gradient: Tensor | None = None,
    with_state: bool = True,
    backend: str = AUTO,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Returns outputs y [B, T, H, N] in v's dtype and the final state [B, H, N_value, N_key].

    r, k, v: [B, T, H, N], one of fp32, bf16, fp16, fp64.
    w: [B, T, H, N], any float dtype, before the double exponential; fp32 is advised, since bf16
        changes the decay by up to 1.6 %.
    u: [H, N], any float dtype; the bonus of the current token.
    state: [B, H, N_value, N_key] or None for zero. States are fp32 (fp64 for fp64 inputs).
    base: [H, N] or None for zero, any float dtype; added to w, its gradient summed in fp32.
    w_gradient: where the gradient of w goes instead of to w, in its own dtype: zeros of w's shape.
        A tensor expanded from one zero will do; the native kernels do not read it.
    with_state: whether the final state is wanted; without it None is returned in its place.
    reset: [B, T] bool; True where a document starts: the state is zero before that token.

    Gradients flow to every float argument, also through the final state. Raises BackendError when
    an argument does not fit or the backend asked for cannot serve the call.
    """
    like = check_sequences("wkv6", {"r": r, "k": k, "v": v}, "[B, T, H, N]")
    w = prepare("wkv6", "w", w, tuple(like.shape), like)
    u = prepare("wkv6", "u", u, tuple(like.shape[2:]), like)
    if base is not None:
        base = prepare("wkv6", "base", base, tuple(like.shape[2:]), like)
    check_w_gradient("wkv6", w_gradient, w)
    inputs = (r, k, v, w, u, base)
    options = {"w_gradient": w_gradient, "with_state": with_state}
    y, final_state = run_heads("wkv6", BACKENDS, backend, inputs, state, reset, **options)
    return y, final_state
