"""WKV-7, the recurrence of RWKV-7: a matrix state per head under a generalised delta rule.

Per batch row and head, with S indexed [value, key] and d_t = exp(-exp(-1/2) sigmoid(w_t)), which
lies in (0.5452, 1):

    S_t = S_{t-1} diag(d_t) + (S_{t-1} a_t) b_t^T + v_t k_t^T
    y_t = S_t r_t                                                   reads S after token t

a and b are arbitrary here; the model gives a = -kappa and b = kappa * (in-context rate) with kappa
of unit length per head, which keeps the state bounded. `w` is the value before the sigmoid, not
the w = -softplus(-x) - 1/2 of older kernels.

| backend     | serves                                             | memory kept for backward      |
|-------------|----------------------------------------------------|-------------------------------|
| `native`    | C++ on the CPU, CUDA on the GPU; needs a compiler  | see its docstring             |
| `chunked`   | any device, torch matmuls over chunks of tokens    | inputs and one state per chunk|
| `reference` | any device, a token loop under autograd            | several states per token      |

Source: RWKV-7 paper (Goose), section on the time mix.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rwkv_train.ops.arguments import check_sequences, check_w_gradient, prepare, run_heads
from rwkv_train.ops.backends.dispatch import AUTO, MATRIX_STATE_BACKENDS, backends_of

BACKENDS = backends_of("wkv7", *MATRIX_STATE_BACKENDS)


def wkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None = None,
    *,
    base: Tensor | None = None,
    w_gradient: Tensor | None = None,
    with_state: bool = True,
    backend: str = AUTO,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Returns outputs y [B, T, H, N] in v's dtype and the final state [B, H, N_value, N_key].

    r, k, v, a, b: [B, T, H, N], one of fp32, bf16, fp16, fp64.
    w: [B, T, H, N], any float dtype, before the sigmoid; fp32 is advised, since bf16 changes the
        decay's logarithm by up to 1.6 %.
    state: [B, H, N_value, N_key] or None for zero. States are fp32 (fp64 for fp64 inputs).
    base: [H, N] or None for zero, any float dtype; added to w, its gradient summed in fp32.
    w_gradient: where the gradient of w goes instead of to w, in its own dtype: zeros of w's shape.
        A tensor expanded from one zero will do; the native kernels do not read it.
    with_state: whether the final state is wanted; without it None is returned in its place.
    reset: [B, T] bool; True where a document starts: the state is zero before that token.

    Gradients flow to every float argument, also through the final state. Raises BackendError when
    an argument does not fit or the backend asked for cannot serve the call.
    """
    sequences = {"r": r, "k": k, "v": v, "a": a, "b": b}
    y, final_state, _ = _run(
        sequences, w, base, None, state, reset, w_gradient, with_state, backend
    )
    return y, final_state


def wkv7_and_bonus(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    bonus: Tensor,
    state: Tensor | None = None,
    *,
    base: Tensor | None = None,
    w_gradient: Tensor | None = None,
    with_state: bool = True,
    backend: str = AUTO,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns y, the bonus's weights s [B, T, H] in fp32 (fp64), and the final state; see `wkv7`.

    s = sum over the channels of a head of r k bonus: how much of its own value a token adds to a
    head's output. Here r and k are read for it anyway, and what s brings to their gradients is
    added before those are rounded.
    bonus: [H, N], any float dtype; r_k of the checkpoints.
    """
    sequences = {"r": r, "k": k, "v": v, "a": a, "b": b}
    y, final_state, s = _run(
        sequences, w, base, bonus, state, reset, w_gradient, with_state, backend
    )
    assert s is not None, "backends return it where there is a bonus"
    return y, s, final_state


def _run(
    sequences: Mapping[str, Tensor],
    w: Tensor,
    base: Tensor | None,
    bonus: Tensor | None,
    state: Tensor | None,
    reset: Tensor | None,
    w_gradient: Tensor | None,
    with_state: bool,
    backend: str,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    like = check_sequences("wkv7", sequences, "[B, T, H, N]")
    w = prepare("wkv7", "w", w, tuple(like.shape), like)
    row = tuple(like.shape[2:])
    base = None if base is None else prepare("wkv7", "base", base, row, like)
    bonus = None if bonus is None else prepare("wkv7", "bonus", bonus, row, like)
    check_w_gradient("wkv7", w_gradient, w)
    options = {"bonus": bonus, "w_gradient": w_gradient, "with_state": with_state}
    r, k, v, a, b = sequences.values()
    inputs = (r, w, k, v, a, b, base)
    y, final_state, s = run_heads("wkv7", BACKENDS, backend, inputs, state, reset, **options)
    return y, final_state, s
