"""Pieces by calls of the ordinary operators: no kernel of their own, on any device and backend.

Contribution: the final state from the empty one. Transition of WKV-7: with v = 0 the operator
multiplies the state and adds nothing, so from the identity it ends in P itself; a batch of twice
the rows gives both. Gradient of the initial state: the operator's own backward pass with nothing
behind the final state, from zeros where the state's value does not matter because y is linear in
it.

Arguments and results as those of `rwkv_train.ops.pieces.reference`; `backend` is the operators'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rwkv_train.ops.pieces.algebra import Sums
from rwkv_train.ops.precision import compute_dtype, log_decay
from rwkv_train.ops.wkv4 import wkv4
from rwkv_train.ops.wkv5 import wkv5
from rwkv_train.ops.wkv6 import wkv6
from rwkv_train.ops.wkv7 import wkv7


def wkv4_sums(backend: str, w: Tensor, k: Tensor, v: Tensor, reset: Tensor | None) -> Sums:
    """Returns the contribution (aa, bb, pp), each [B, A]."""
    with torch.no_grad():
        _, sums = wkv4(w, torch.zeros_like(w), k, v, backend=backend, reset=reset)
    return sums


def wkv4_gradient(
    backend: str,
    gy: Tensor,
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    state: Sums,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns (gaa, gbb), each [B, A], in the units of the state's pp."""
    aa, bb, pp = state
    aa, bb = aa.detach().requires_grad_(), bb.detach().requires_grad_()
    with torch.enable_grad():
        y, _ = wkv4(w, u, k, v, (aa, bb, pp.detach()), backend=backend, reset=reset)
    gaa, gbb = torch.autograd.grad(y, (aa, bb), gy)
    return gaa, gbb


def wkv5_piece(
    backend: str, k: Tensor, v: Tensor, w: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Returns the tokens' decays multiplied, [B, H, N], and the contribution [B, H, N, N]."""
    with torch.no_grad():
        _, contribution = wkv5(k, k, v, w, torch.zeros_like(w), backend=backend, reset=reset)
    decay = torch.exp(k.shape[1] * log_decay(w)).expand(k.shape[0], *w.shape)
    return decay, _present(contribution)


def wkv6_piece(
    backend: str, k: Tensor, v: Tensor, w: Tensor, base: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Returns the tokens' decays multiplied, [B, H, N], and the contribution [B, H, N, N]."""
    bonus = w.new_zeros(w.shape[2:])
    with torch.no_grad():
        _, contribution = wkv6(k, k, v, w, bonus, base=base, backend=backend, reset=reset)
    decay = torch.exp(log_decay(w if base is None else w + base).sum(1))
    return decay, _present(contribution)


def wkv7_piece(
    backend: str,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    base: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns transition and contribution, each [B, H, N, N]."""
    batch, _, heads, size = v.shape
    unit = torch.eye(size, dtype=compute_dtype(v.dtype), device=v.device)
    state = torch.stack((torch.zeros_like(unit), unit))[:, None, None]
    state = state.expand(2, batch, heads, size, size).flatten(0, 1)
    v = torch.cat((v, torch.zeros_like(v)))
    w, k, a, b = (torch.cat((x, x)) for x in (w, k, a, b))
    reset = None if reset is None else torch.cat((reset, reset))
    with torch.no_grad():
        _, final = wkv7(k, w, k, v, a, b, state, base=base, backend=backend, reset=reset)
    contribution, transition = torch.split(_present(final), batch)
    return transition, contribution


def wkv5_gradient(backend: str, gy: Tensor, r: Tensor, w: Tensor, reset: Tensor | None) -> Tensor:
    """Returns the gradient of the initial state [B, H, N, N] through y."""
    bonus = torch.zeros_like(w)
    options: dict[str, Any] = {"with_state": False, "backend": backend, "reset": reset}
    return _through_y(gy, lambda state: wkv5(r, r, gy, w, bonus, state, **options)[0])


def wkv6_gradient(
    backend: str, gy: Tensor, r: Tensor, w: Tensor, base: Tensor | None, reset: Tensor | None
) -> Tensor:
    """Returns the gradient of the initial state [B, H, N, N] through y."""
    bonus = w.new_zeros(w.shape[2:])
    options: dict[str, Any] = {"with_state": False, "backend": backend, "reset": reset}
    return _through_y(gy, lambda state: wkv6(r, r, gy, w, bonus, state, base=base, **options)[0])


def wkv7_gradient(
    backend: str,
    gy: Tensor,
    r: Tensor,
    w: Tensor,
    a: Tensor,
    b: Tensor,
    base: Tensor | None,
    reset: Tensor | None,
) -> Tensor:
    """Returns the gradient of the initial state [B, H, N, N] through y."""
    options: dict[str, Any] = {"with_state": False, "backend": backend, "reset": reset}
    return _through_y(gy, lambda state: wkv7(r, w, r, gy, a, b, state, base=base, **options)[0])


def _through_y(gy: Tensor, y_of: Callable[[Tensor], Tensor]) -> Tensor:
    batch, _, heads, size = gy.shape
    zeros = gy.new_zeros(batch, heads, size, size, dtype=compute_dtype(gy.dtype))
    with torch.enable_grad():
        state = zeros.requires_grad_()
        y = y_of(state)
    (gradient,) = torch.autograd.grad(y, state, gy)
    return gradient


def _present(state: Tensor | None) -> Tensor:
    assert state is not None, "the final state is wanted"
    return state
