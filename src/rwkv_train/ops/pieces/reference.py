"""Pieces as plain token loops: the ground truth for the other backends.

Every backend has `run(form, *arguments)` with these forms. w, base, u and state are in the compute
dtype, and so are all results; the sequences share one dtype. reset: [B, T] bool or None.

| form                    | arguments                     | results                                |
|-------------------------|-------------------------------|----------------------------------------|
| `wkv4_piece`            | w, k, v, reset                | aa, bb, pp, each [B, A]                |
| `wkv5_6_piece`          | k, v, w, base, reset          | decay [B, H, N], contribution          |
| `wkv7_piece`            | w, k, v, a, b, base, reset    | transition, contribution               |
| `wkv5_6_state_gradient` | gy, r, w, base, reset         | gradient of the initial state          |
| `wkv7_state_gradient`   | gy, r, w, a, b, base, reset   | gradient of the initial state          |

Matrices are [B, H, N_value, N_key], a transition [B, H, N_key, N_key]. w is [B, T, H, N], or [H, N]
for all tokens alike (RWKV-5). Of rows in which a document starts, decays and transitions may be
anything: nothing comes through there, and the caller sees to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rwkv_train.ops.backends.dispatch import serves_every_call
from rwkv_train.ops.precision import decay_input, log_decay
from rwkv_train.ops.wkv4.reference import EMPTY, WKV4_LARGEST_LOG_RATE, Sums, empty_state
from rwkv_train.ops.wkv7.reference import LARGEST_RATE

refuses = serves_every_call


def run(form: str, *arguments: Any) -> Any:
    """Returns the results of a form, see above."""
    with torch.no_grad():
        return _FORMS[form](*arguments)


def wkv5_6_log_decays(w: Tensor, base: Tensor | None, shape: torch.Size) -> Tensor:
    """Returns the logarithms of RWKV-5's or 6's decays, [B, T, H, N] like `shape`, expanded."""
    return log_decay(decay_input(w, base, None)).expand(shape)


def _wkv4_piece(w: Tensor, k: Tensor, v: Tensor, reset: Tensor | None) -> Sums:
    k, v = k.to(w.dtype), v.to(w.dtype)
    step = log_decay(w, WKV4_LARGEST_LOG_RATE)
    aa, bb, pp = empty_state(k, (v.shape[0], v.shape[2]))
    for t in range(v.shape[1]):
        if reset is not None:
            start = reset[:, t, None]
            aa, bb = aa.masked_fill(start, 0), bb.masked_fill(start, 0)
            pp = pp.masked_fill(start, EMPTY)
        scale = torch.maximum(pp + step, k[:, t])
        kept, added = torch.exp(pp + step - scale), torch.exp(k[:, t] - scale)
        aa, bb, pp = kept * aa + added * v[:, t], kept * bb + added, scale
    return aa, bb, pp


def _wkv5_6_piece(
    k: Tensor, v: Tensor, w: Tensor, base: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    k, v = k.to(w.dtype), v.to(w.dtype)
    decays = torch.exp(wkv5_6_log_decays(w, base, k.shape))
    batch, time, heads, size = k.shape
    whole, s = k.new_ones(batch, heads, size), k.new_zeros(batch, heads, size, size)
    for t in range(time):
        if reset is not None:
            s = s.masked_fill(reset[:, t, None, None, None], 0)
        whole = whole * decays[:, t]
        s = s * decays[:, t, :, None] + v[:, t, ..., None] * k[:, t, :, None]
    return whole, s


def _wkv7_piece(
    w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, base: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    k, v, a, b = (x.to(w.dtype) for x in (k, v, a, b))
    decays = _wkv7_decays(w, base)
    batch, time, heads, size = k.shape
    s = k.new_zeros(batch, heads, size, size)
    transition = torch.eye(size, dtype=w.dtype, device=w.device).expand(s.shape)
    for t in range(time):
        if reset is not None:
            s = s.masked_fill(reset[:, t, None, None, None], 0)
        transition = _through_token(transition, decays[:, t], a[:, t], b[:, t])
        s = _through_token(s, decays[:, t], a[:, t], b[:, t])
        s = s + v[:, t, ..., None] * k[:, t, :, None]
    return transition, s


def _wkv5_6_state_gradient(
    gy: Tensor, r: Tensor, w: Tensor, base: Tensor | None, reset: Tensor | None
) -> Tensor:
    gy, r = gy.to(w.dtype), r.to(w.dtype)
    decays = torch.exp(wkv5_6_log_decays(w, base, r.shape))
    batch, time, heads, size = r.shape
    g = r.new_zeros(batch, heads, size, size)
    for t in reversed(range(time)):
        # y reads the state before the token enters it
        g = g * decays[:, t, :, None] + gy[:, t, ..., None] * r[:, t, :, None]
        if reset is not None:
            g = g.masked_fill(reset[:, t, None, None, None], 0)
    return g


def _wkv7_state_gradient(
    gy: Tensor,
    r: Tensor,
    w: Tensor,
    a: Tensor,
    b: Tensor,
    base: Tensor | None,
    reset: Tensor | None,
) -> Tensor:
    gy, r, a, b = (x.to(w.dtype) for x in (gy, r, a, b))
    decays = _wkv7_decays(w, base)
    batch, time, heads, size = r.shape
    g = r.new_zeros(batch, heads, size, size)
    for t in reversed(range(time)):
        # y reads the state after the token; backwards a and b change places
        g = g + gy[:, t, ..., None] * r[:, t, :, None]
        g = _through_token(g, decays[:, t], b[:, t], a[:, t])
        if reset is not None:
            g = g.masked_fill(reset[:, t, None, None, None], 0)
    return g


def _wkv7_decays(w: Tensor, base: Tensor | None) -> Tensor:
    return torch.exp(-LARGEST_RATE * torch.sigmoid(decay_input(w, base, None)))


def _through_token(s: Tensor, d: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Returns s (diag(d) + a bᵀ) for s [B, H, N, N] and d, a, b [B, H, N]."""
    removed = torch.einsum("bhji,bhi->bhj", s, a)
    return s * d.unsqueeze(-2) + removed.unsqueeze(-1) * b.unsqueeze(-2)


_FORMS: dict[str, Callable[..., Any]] = {
    "wkv4_piece": _wkv4_piece,
    "wkv5_6_piece": _wkv5_6_piece,
    "wkv7_piece": _wkv7_piece,
    "wkv5_6_state_gradient": _wkv5_6_state_gradient,
    "wkv7_state_gradient": _wkv7_state_gradient,
}
