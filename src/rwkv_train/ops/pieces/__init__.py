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

`backend` is that of the operators.

Source: the chain rule over the pieces of a linear recurrence; for RWKV-7 the scheme of the context
parallelism in flash-linear-attention (fla/ops/cp).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rwkv_train.ops.arguments import check_reset, check_sequences, prepare
from rwkv_train.ops.backends.dispatch import AUTO
from rwkv_train.ops.pieces import operator_calls
from rwkv_train.ops.pieces.algebra import DecayPiece, MatrixPiece, ScaledPiece, Sums, to_adjoint
from rwkv_train.ops.precision import log_decay
from rwkv_train.ops.wkv4.reference import WKV4_LARGEST_LOG_RATE, empty_state


def wkv4_piece(
    w: Tensor, k: Tensor, v: Tensor, *, backend: str = AUTO, reset: Tensor | None = None
) -> ScaledPiece:
    """Returns the piece of these tokens; arguments as those of `rwkv_train.ops.wkv4.wkv4`."""
    w, k, v = w.detach(), k.detach(), v.detach()
    like = check_sequences("wkv4_piece", {"k": k, "v": v}, "[B, T, A]")
    check_reset("wkv4_piece", reset, like)
    w = prepare("wkv4_piece", "w", w, (like.shape[2],), like)
    sums = operator_calls.wkv4_sums(backend, w, k, v, reset)
    span = w.new_full((like.shape[0],), like.shape[1])
    if reset is not None:
        span.masked_fill_(reset.any(1), torch.inf)
    return ScaledPiece(span, log_decay(w, WKV4_LARGEST_LOG_RATE), sums)


def wkv5_piece(
    k: Tensor, v: Tensor, w: Tensor, *, backend: str = AUTO, reset: Tensor | None = None
) -> DecayPiece:
    """Returns the piece of these tokens; arguments as those of `rwkv_train.ops.wkv5.wkv5`."""
    like = _check("wkv5_piece", {"k": k, "v": v}, reset)
    k, v, w = k.detach(), v.detach(), _row("wkv5_piece", "w", w, like)
    decay, contribution = operator_calls.wkv5_piece(backend, k, v, w, reset)
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
    like = _check("wkv6_piece", {"k": k, "v": v}, reset)
    k, v, w = k.detach(), v.detach(), _whole("wkv6_piece", w, like)
    base = None if base is None else _row("wkv6_piece", "base", base, like)
    decay, contribution = operator_calls.wkv6_piece(backend, k, v, w, base, reset)
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
    like = _check("wkv7_piece", {"k": k, "v": v, "a": a, "b": b}, reset)
    k, v, a, b = k.detach(), v.detach(), a.detach(), b.detach()
    w = _whole("wkv7_piece", w, like)
    base = None if base is None else _row("wkv7_piece", "base", base, like)
    transition, contribution = operator_calls.wkv7_piece(backend, w, k, v, a, b, base, reset)
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
    like = check_sequences(op, {"k": k.detach(), "v": v.detach()}, "[B, T, A]")
    check_reset(op, reset, like)
    batch, _, width = like.shape
    w, u = (prepare(op, n, x.detach(), (width,), like) for n, x in (("w", w), ("u", u)))
    if state is None:
        state = empty_state(w, (batch, width))
    aa, bb, pp = (
        prepare(op, f"state {name}", part.detach(), (batch, width), like)
        for name, part in zip(("aa", "bb", "pp"), state)
    )
    gy = gy.detach().to(like.dtype)
    found = operator_calls.wkv4_gradient(
        backend, gy, w, u, k.detach(), v.detach(), (aa, bb, pp), reset
    )
    return to_adjoint((*found, pp), (aa, bb, pp))


def wkv5_state_gradient(
    gy: Tensor, r: Tensor, w: Tensor, *, backend: str = AUTO, reset: Tensor | None = None
) -> Tensor:
    """Returns the gradient of the initial state [B, H, N_value, N_key] through y.

    gy: the gradient of y, in any float dtype. It does not depend on the state, k, v and u.
    Other arguments as those of `rwkv_train.ops.wkv5.wkv5`.
    """
    like = _check("wkv5_state_gradient", {"r": r, "gy": gy.to(r.dtype)}, reset)
    w = _row("wkv5_state_gradient", "w", w, like)
    return operator_calls.wkv5_gradient(backend, gy.detach().to(r.dtype), r.detach(), w, reset)


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
    w, base = _whole(op, w, like), None if base is None else _row(op, "base", base, like)
    return operator_calls.wkv6_gradient(backend, gy, r, w, base, reset)


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
    w, base = _whole(op, w, like), None if base is None else _row(op, "base", base, like)
    return operator_calls.wkv7_gradient(backend, gy, r, w, a, b, base, reset)


def _check(op: str, sequences: Mapping[str, Tensor], reset: Tensor | None) -> Tensor:
    like = check_sequences(op, sequences, "[B, T, H, N]")
    check_reset(op, reset, like)
    return like


def _row(op: str, name: str, row: Tensor, like: Tensor) -> Tensor:
    return prepare(op, name, row.detach(), tuple(like.shape[2:]), like)


def _whole(op: str, w: Tensor, like: Tensor) -> Tensor:
    return prepare(op, "w", w.detach(), tuple(like.shape), like)


def _unless_closed(transition: Tensor, reset: Tensor | None) -> Tensor:
    """Returns the transition, [B, ...], with 0 in the rows in which a document starts."""
    if reset is None:
        return transition
    # Not multiplied: a transition may have overflowed.
    is_closed = reset.any(1).view(-1, *[1] * (transition.dim() - 1))
    return transition.masked_fill(is_closed, 0)
