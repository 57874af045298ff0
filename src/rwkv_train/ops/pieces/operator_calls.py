"""Pieces by calls of the ordinary operators: no kernel of their own, on any device and backend.

Contribution: the final state from the empty one. Transition of WKV-7: with v = 0 the operator
multiplies the state and adds nothing, so from the identity it ends in P itself; a batch of twice
the rows gives both. Gradient of the initial state: it obeys the recurrence in reversed time, with r
and gy for k and v, and with a and b exchanged; so it is a final state too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rwkv_train.ops.pieces.document_marks import without_unreading
from rwkv_train.ops.precision import compute_dtype, log_decay
from rwkv_train.ops.wkv4 import wkv4
from rwkv_train.ops.wkv4.reference import Sums
from rwkv_train.ops.wkv5 import wkv5
from rwkv_train.ops.wkv6 import wkv6
from rwkv_train.ops.wkv7 import wkv7

# exp(-exp(-1/2) sigmoid(w)) is 1 there in fp64 too, whatever base is added to w.
NO_DECAY = -1000.0


def run(backend: str, form: str, *arguments: Any) -> Any:
    """Returns the results of a form of `rwkv_train.ops.pieces.reference`.

    backend: the operators', which must serve the call.
    """
    with torch.no_grad():
        return _FORMS[form](backend, *arguments)


def _wkv4_piece(backend: str, w: Tensor, k: Tensor, v: Tensor, reset: Tensor | None) -> Sums:
    return wkv4(w, torch.zeros_like(w), k, v, backend=backend, reset=reset)[1]


def _wkv5_6_piece(
    backend: str, k: Tensor, v: Tensor, w: Tensor, base: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    bonus = w.new_zeros(k.shape[2:])
    options: dict[str, Any] = {"backend": backend, "reset": reset}
    if w.dim() == 2:
        _, contribution = wkv5(k, k, v, w, bonus, **options)
        total = (k.shape[1] * log_decay(w)).expand(k.shape[0], *w.shape)
    else:
        _, contribution = wkv6(k, k, v, w, bonus, base=base, **options)
        total = log_decay(w if base is None else w + base).sum(1)
    return torch.exp(total), _present(contribution)


def _wkv7_piece(
    backend: str,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    base: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    batch, _, heads, size = v.shape
    unit = torch.eye(size, dtype=compute_dtype(v.dtype), device=v.device)
    state = torch.stack((torch.zeros_like(unit), unit))[:, None, None]
    state = state.expand(2, batch, heads, size, size).flatten(0, 1)
    v = torch.cat((v, torch.zeros_like(v)))
    w, k, a, b = (torch.cat((x, x)) for x in (w, k, a, b))
    reset = None if reset is None else torch.cat((reset, reset))
    _, final = wkv7(k, w, k, v, a, b, state, base=base, backend=backend, reset=reset)
    contribution, transition = torch.split(_present(final), batch)
    return transition, contribution


def _wkv5_6_state_gradient(
    backend: str, gy: Tensor, r: Tensor, w: Tensor, base: Tensor | None, reset: Tensor | None
) -> Tensor:
    gy, r = without_unreading(gy, reset).flip(1), r.flip(1)
    w = w if w.dim() == 2 else w.flip(1)
    return _wkv5_6_piece(backend, r, gy, w, base, None)[1]


def _wkv7_state_gradient(
    backend: str,
    gy: Tensor,
    r: Tensor,
    w: Tensor,
    a: Tensor,
    b: Tensor,
    base: Tensor | None,
    reset: Tensor | None,
) -> Tensor:
    # y reads the state after its token: r and gy come one token later, after a first one that
    # neither decays nor removes.
    r, gy = (_reversed(x, behind=1) for x in (r, without_unreading(gy, reset)))
    a, b = _reversed(b, before=1), _reversed(a, before=1)
    w = _reversed(w, before=1, value=NO_DECAY)
    return _present(wkv7(r, w, r, gy, a, b, base=base, backend=backend)[1])


def _reversed(x: Tensor, *, before: int = 0, behind: int = 0, value: float = 0.0) -> Tensor:
    """Returns x [B, T, H, N] with the last token first, and so many tokens of `value` around it."""
    return functional.pad(x.flip(1), (0, 0, 0, 0, before, behind), value=value)


def _present(state: Tensor | None) -> Tensor:
    assert state is not None, "the final state is wanted"
    return state


_FORMS: dict[str, Callable[..., Any]] = {
    "wkv4_piece": _wkv4_piece,
    "wkv5_6_piece": _wkv5_6_piece,
    "wkv7_piece": _wkv7_piece,
    "wkv5_6_state_gradient": _wkv5_6_state_gradient,
    "wkv7_state_gradient": _wkv7_state_gradient,
}
