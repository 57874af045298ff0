"""State-only forms of the WKV operators: what a piece of a sequence does to the state.

For a sequence whose tokens are spread over ranks. Of its own tokens alone a rank computes a piece's
transition and contribution (`wkvN_piece`); from those of the ranks before it, it folds the state
that its piece starts from, and runs the ordinary operator with it. On the way back it computes the
gradient of that state through its own outputs (`wkvN_state_gradient`), and folds the gradient of
the state it ended in from those of the ranks behind it:

    forward    S = fold(pieces[:rank], S_0)
    backward   G = from_adjoint(fold(adjoints, None), S_out)
               adjoints: pieces[q].adjoint(g[q]) for q = n - 1 down to rank + 1

What pieces do, one after the other, is in `algebra.py`; `scan.py` has the same in log n rounds,
`message.py` what goes over the wire. Arguments are those of the operators, without what the state
does not depend on. All results are without a graph, in fp32 (fp64 for fp64 inputs).

| backend     | how                                                                             |
|-------------|---------------------------------------------------------------------------------|
| `native`    | C++ on the CPU, CUDA on the GPU; needs a compiler                               |
| `chunked`   | any device: closed sums (RWKV-4 to 6), matrix products over chunks (RWKV-7)      |
| `reference` | any device, a token loop                                                        |

`backend` takes the operators' names, so that a model's choice serves both. RWKV-4's y is not linear
in the state, so that there the gradient is the operator's own backward pass, with nothing behind
the final state: as exact as one process also for keys far beyond the range of exp, where other ways
are not.

Source: the chain rule over the pieces of a recurrence that is linear in its state; for RWKV-7 the
scheme is that of the context parallelism in flash-linear-attention (fla/ops/cp).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rwkv_train.ops.arguments import check_reset, check_sequences, describe_call, prepare
from rwkv_train.ops.backends.dispatch import AUTO, MATRIX_STATE_BACKENDS, backends_of, dispatch
from rwkv_train.ops.pieces.algebra import DecayPiece, MatrixPiece, ScaledPiece, to_adjoint
from rwkv_train.ops.precision import log_decay
from rwkv_train.ops.wkv4 import BACKENDS as WKV4_BACKENDS
from rwkv_train.ops.wkv4 import wkv4
from rwkv_train.ops.wkv4.reference import WKV4_LARGEST_LOG_RATE, Sums, empty_state

BACKENDS = backends_of("pieces", *MATRIX_STATE_BACKENDS)
_SUMS_BACKENDS = backends_of("pieces", *(backend.name for backend in WKV4_BACKENDS))


def wkv4_piece(
    w: Tensor, k: Tensor, v: Tensor, *, backend: str = AUTO, reset: Tensor | None = None
) -> ScaledPiece:
    """Returns the piece of these tokens; arguments as those of `rwkv_train.ops.wkv4.wkv4`."""
    k, v = k.detach(), v.detach()
    like = _check("wkv4_piece", {"k": k, "v": v}, reset, "[B, T, A]")
    w = _row("wkv4_piece", "w", w, like)
    sums = _dispatch("wkv4_piece", backend, like, (w, k, v, reset))
    span = w.new_full((like.shape[0],), like.shape[1])
    if reset is not None:
        span.masked_fill_(reset.any(1), torch.inf)
    return ScaledPiece(span, log_decay(w, WKV4_LARGEST_LOG_RATE), sums)


def wkv5_piece(
    k: Tensor, v: Tensor, w: Tensor, *, backend: str = AUTO, reset: Tensor | None = None
) -> DecayPiece:
    """Returns the piece of these tokens; arguments as those of `rwkv_train.ops.wkv5.wkv5`."""
    k, v = k.detach(), v.detach()
    like = _check("wkv5_piece", {"k": k, "v": v}, reset)
    w = _row("wkv5_piece", "w", w, like)
    decay, contribution = _dispatch("wkv5_6_piece", backend, like, (k, v, w, None, reset))
    return DecayPiece(_unless_closed(decay, reset), contribution)


def wkv6_piece(
    k: Tensor,
    v: Tensor,
    w: Tensor,
    *,
    base: Tensor | None = None,
    backend: str = AUTO,
    reset: Tensor | None = None,
) -> DecayPiece:
    """Returns the piece of these tokens; arguments as those of `rwkv_train.ops.wkv6.wkv6`."""
    k, v = k.detach(), v.detach()
    like = _check("wkv6_piece", {"k": k, "v": v}, reset)
    w, base = _decay_logits("wkv6_piece", w, base, like)
    decay, contribution = _dispatch("wkv5_6_piece", backend, like, (k, v, w, base, reset))
    return DecayPiece(_unless_closed(decay, reset), contribution)


def wkv7_piece(
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    base: Tensor | None = None,
    backend: str = AUTO,
    reset: Tensor | None = None,
) -> MatrixPiece:
    """Returns the piece of these tokens; arguments as those of `rwkv_train.ops.wkv7.wkv7`."""
    k, v, a, b = (x.detach() for x in (k, v, a, b))
    like = _check("wkv7_piece", {"k": k, "v": v, "a": a, "b": b}, reset)
    w, base = _decay_logits("wkv7_piece", w, base, like)
    arguments = (w, k, v, a, b, base, reset)
    transition, contribution = _dispatch("wkv7_piece", backend, like, arguments)
    return MatrixPiece(_unless_closed(transition, reset), contribution)


def wkv4_state_gradient(
    gy: Tensor,
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    state: Sums | None,
    *,
    backend: str = AUTO,
    reset: Tensor | None = None,
) -> Sums:
    """Returns the gradient of the initial state through y, as adjoint pieces carry it.

    gy: the gradient of y, in any float dtype.
    state: (aa, bb, pp), each [B, A], which the operator was given; None: the empty one.
    Other arguments as those of `rwkv_train.ops.wkv4.wkv4`.
    """
    op = "wkv4_state_gradient"
    gy, k, v = gy.detach().to(v.dtype), k.detach(), v.detach()
    like = _check(op, {"k": k, "v": v, "gy": gy}, reset, "[B, T, A]")
    w, u = _row(op, "w", w, like), _row(op, "u", u, like)
    shape = (like.shape[0], like.shape[2])
    aa, bb, pp = (
        prepare(op, f"state {name}", part.detach(), shape, like)
        for name, part in zip(("aa", "bb", "pp"), state or empty_state(w, shape))
    )
    with torch.enable_grad():
        aa, bb = aa.requires_grad_(), bb.requires_grad_()
        y, _ = wkv4(w, u, k, v, (aa, bb, pp), backend=backend, reset=reset)
    gaa, gbb = torch.autograd.grad(y, (aa, bb), gy)
    return to_adjoint((gaa, gbb, pp), (aa, bb, pp))


def wkv5_state_gradient(
    gy: Tensor, r: Tensor, w: Tensor, *, backend: str = AUTO, reset: Tensor | None = None
) -> Tensor:
    """Returns the gradient of the initial state [B, H, N_value, N_key] through y.

    gy: the gradient of y, in any float dtype. It does not depend on the state, k, v and u.
    Other arguments as those of `rwkv_train.ops.wkv5.wkv5`.
    """
    op = "wkv5_state_gradient"
    gy, r = gy.detach().to(r.dtype), r.detach()
    like = _check(op, {"r": r, "gy": gy}, reset)
    arguments = (gy, r, _row(op, "w", w, like), None, reset)
    gradient: Tensor = _dispatch("wkv5_6_state_gradient", backend, like, arguments)
    return gradient


def wkv6_state_gradient(
    gy: Tensor,
    r: Tensor,
    w: Tensor,
    *,
    base: Tensor | None = None,
    backend: str = AUTO,
    reset: Tensor | None = None,
) -> Tensor:
    """Returns the gradient of the initial state [B, H, N_value, N_key] through y.

    gy: the gradient of y, in any float dtype. It does not depend on the state, k, v and u.
    Other arguments as those of `rwkv_train.ops.wkv6.wkv6`.
    """
    op = "wkv6_state_gradient"
    gy, r = gy.detach().to(r.dtype), r.detach()
    like = _check(op, {"r": r, "gy": gy}, reset)
    arguments = (gy, r, *_decay_logits(op, w, base, like), reset)
    gradient: Tensor = _dispatch("wkv5_6_state_gradient", backend, like, arguments)
    return gradient


def wkv7_state_gradient(
    gy: Tensor,
    r: Tensor,
    w: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    base: Tensor | None = None,
    backend: str = AUTO,
    reset: Tensor | None = None,
) -> Tensor:
    """Returns the gradient of the initial state [B, H, N_value, N_key] through y.

    gy: the gradient of y, in any float dtype. It does not depend on the state, k and v.
    Other arguments as those of `rwkv_train.ops.wkv7.wkv7`.
    """
    op = "wkv7_state_gradient"
    gy, r, a, b = (x.detach() for x in (gy.to(r.dtype), r, a, b))
    like = _check(op, {"r": r, "gy": gy, "a": a, "b": b}, reset)
    w, base = _decay_logits(op, w, base, like)
    gradient: Tensor = _dispatch(op, backend, like, (gy, r, w, a, b, base, reset))
    return gradient


def _check(
    op: str, sequences: Mapping[str, Tensor], reset: Tensor | None, layout: str = "[B, T, H, N]"
) -> Tensor:
    like = check_sequences(op, sequences, layout)
    check_reset(op, reset, like)
    return like


def _row(op: str, name: str, row: Tensor, like: Tensor) -> Tensor:
    return prepare(op, name, row.detach(), tuple(like.shape[2:]), like)


def _decay_logits(
    op: str, w: Tensor, base: Tensor | None, like: Tensor
) -> tuple[Tensor, Tensor | None]:
    w = prepare(op, "w", w.detach(), tuple(like.shape), like)
    return w, None if base is None else _row(op, "base", base, like)


def _dispatch(form: str, backend: str, like: Tensor, arguments: tuple[Any, ...]) -> Any:
    """Returns the results of a form of `reference.py`; the last argument is reset."""
    has_reset = arguments[-1] is not None
    library = form.replace("state_gradient", "piece")
    call = describe_call(library, like, (), has_state=False, has_reset=has_reset)
    backends = BACKENDS if like.dim() == 4 else _SUMS_BACKENDS
    return dispatch(backends, backend, call, (form, *arguments))


def _unless_closed(transition: Tensor, reset: Tensor | None) -> Tensor:
    """Returns the transition, [B, ...], with 0 in the rows in which a document starts."""
    if reset is None:
        return transition
    # Not multiplied: a transition may have overflowed.
    is_closed = reset.any(1).view(-1, *[1] * (transition.dim() - 1))
    return transition.masked_fill(is_closed, 0)
