"""Pieces by sums and matrix products over all tokens or over chunks, on any device.

RWKV-4 to 6 have closed forms, with every exponent at most 0 for any length and decay:

    4      pp = max_t e_t, aa = Σ exp(e_t - pp) v_t, bb alike      e_t = k_t + (T - 1 - t) log-decay
    5, 6   Q = Vᵀ (K exp(λ after t)),  g = dYᵀ (R exp(λ before t))

The sums λ after t and before t are summed up as such: as differences of a running sum they lose
digits in proportion to the whole sum (5.8e-4 for fast decays over 4096 tokens, 4e-8 so).

RWKV-7 goes by chunks, names and formulas as in `rwkv_train.ops.wkv7.chunked`; X = [Q; P] starts as
[0; I], its rows never meet:

    X <- X (diag(e) + Wᵀ B^) + [U0ᵀ B^ + Vᵀ K^; 0]                    chunk after chunk
    G <- G (diag(e) + Wᵀ B^)ᵀ + dYᵀ (R~ + RB W)                       from the last chunk on

Tokens before the last document start do not write to what comes out: there v = 0. Those from the
first one on do not read the initial state: there the gradient of y is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rwkv_train.ops.backends.dispatch import serves_every_call
from rwkv_train.ops.chunked.chunks import Group, chunk_length, cut, groups, pairs
from rwkv_train.ops.pieces.document_marks import (
    precedes_last_start,
    without_overwritten,
    without_unreading,
)
from rwkv_train.ops.pieces.full_products import full_products
from rwkv_train.ops.pieces.reference import wkv5_6_log_decays
from rwkv_train.ops.precision import compute_dtype, log_decay
from rwkv_train.ops.wkv4.reference import EMPTY, WKV4_LARGEST_LOG_RATE, Sums
from rwkv_train.ops.wkv7.chunked import WKV7_CHUNK
from rwkv_train.ops.wkv7.reference import LARGEST_RATE

refuses = serves_every_call


def run(form: str, *arguments: Any) -> Any:
    """Returns the results of a form of `rwkv_train.ops.pieces.reference`."""
    with torch.no_grad(), full_products(arguments[0].device):
        return _FORMS[form](*arguments)


def _wkv4_piece(w: Tensor, k: Tensor, v: Tensor, reset: Tensor | None) -> Sums:
    time = k.shape[1]
    later = torch.arange(time - 1, -1, -1, dtype=w.dtype, device=w.device)  # tokens after t
    exponents = k + later[:, None] * log_decay(w, WKV4_LARGEST_LOG_RATE)  # [B, T, A]
    if reset is not None:
        exponents = exponents.masked_fill(precedes_last_start(reset).unsqueeze(-1), EMPTY)
    pp = exponents.amax(1)
    weights = torch.exp(exponents - pp.unsqueeze(1))
    return (weights * v).sum(1), weights.sum(1), pp


def _wkv5_6_piece(
    k: Tensor, v: Tensor, w: Tensor, base: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    batch, _, heads, size = k.shape
    whole = w.new_empty(batch, heads, size)
    contribution = w.new_empty(batch, heads, size, size)
    v = without_overwritten(v, reset)
    for group in groups(k):
        log_d = _log_decays(w, base, k, group)
        # with the zero of the last token in front, and the whole sum at the end
        sums = _sums_from_zero(log_d.flip(1))
        pairs(whole, group).copy_(torch.exp(sums[:, -1]))
        written = _whole_rows(k, group, w.dtype) * torch.exp(sums[:, :-1].flip(1))
        pairs(contribution, group).copy_(_whole_rows(v, group, w.dtype).mT @ written)
    return whole, contribution


def _wkv5_6_state_gradient(
    gy: Tensor, r: Tensor, w: Tensor, base: Tensor | None, reset: Tensor | None
) -> Tensor:
    batch, _, heads, size = r.shape
    gradient = w.new_empty(batch, heads, size, size)
    gy = without_unreading(gy, reset)
    for group in groups(r):
        before = torch.exp(_sums_from_zero(_log_decays(w, base, r, group))[:, :-1])
        read = _whole_rows(r, group, w.dtype) * before
        pairs(gradient, group).copy_(_whole_rows(gy, group, w.dtype).mT @ read)
    return gradient


def _wkv7_piece(
    w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, base: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    batch, _, heads, size = k.shape
    rows = w.new_zeros(batch, heads, 2, size, size)  # Q, then P
    rows[:, :, 1].diagonal(0, 2, 3).fill_(1)
    w = w if base is None else w + base
    v = without_overwritten(v, reset)
    for group in groups(k):
        wc, kc, vc, ac, bc = _chunks(group, w, k, v, a, b)
        log_d, total = _wkv7_log_decays(wc)
        left = ac * torch.exp(total - log_d)
        right = torch.cat((bc, kc), 2) * torch.exp(-total).repeat(1, 1, 2, 1)
        kept = torch.cat((bc, kc), 2) * torch.exp(total[:, :, -1:] - total).repeat(1, 1, 2, 1)
        seen = left @ right.mT  # [G, M, C, 2C]: AB, AK
        length = wc.shape[2]
        ab, ak = seen[..., :length].tril(-1), seen[..., length:].tril(-1)
        solved = _solved(ab, torch.cat((left, ak @ vc), 3))
        step = _step(solved[..., :size], kept[:, :, :length], total)
        added = torch.cat((solved[..., size:], vc), 2).mT @ kept
        state = pairs(rows, group)  # [G, 2, N, N]
        for m in range(step.shape[1]):
            state.copy_(state @ step[:, m, None])
            state[:, 0] += added[:, m]
    return rows[:, :, 1], rows[:, :, 0]


def _wkv7_state_gradient(
    gy: Tensor,
    r: Tensor,
    w: Tensor,
    a: Tensor,
    b: Tensor,
    base: Tensor | None,
    reset: Tensor | None,
) -> Tensor:
    batch, _, heads, size = r.shape
    gradient = w.new_zeros(batch, heads, size, size)
    w = w if base is None else w + base
    gy = without_unreading(gy, reset)
    for group in groups(r):
        wc, rc, gyc, ac, bc = _chunks(group, w, r, gy, a, b)
        log_d, total = _wkv7_log_decays(wc)
        left = torch.cat((ac * torch.exp(total - log_d), rc * torch.exp(total)), 2)
        seen = left @ (bc * torch.exp(-total)).mT  # [G, M, 2C, C]: AB over RB
        length = wc.shape[2]
        w_rows = _solved(seen[:, :, :length].tril(-1), left[:, :, :length])
        step = _step(w_rows, bc * torch.exp(total[:, :, -1:] - total), total)
        added = gyc.mT @ (left[:, :, length:] + seen[:, :, length:].tril() @ w_rows)
        state = pairs(gradient, group)
        for m in reversed(range(step.shape[1])):
            state.copy_(torch.baddbmm(added[:, m], state, step[:, m].mT))
    return gradient


def _chunks(group: Group, w: Tensor, *sequences: Tensor) -> tuple[Tensor, ...]:
    """Returns w and the sequences in chunks, [G, M, C, N], in the compute dtype."""
    dtype = compute_dtype(sequences[0].dtype)
    length = chunk_length(w.shape[1], WKV7_CHUNK)
    # The tail is filled with tokens that neither write nor decay.
    w = cut(w, group, length, dtype, pad=-torch.inf)
    return w, *(cut(x, group, length, dtype) for x in sequences)


def _wkv7_log_decays(w: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the logarithms of the decays and their running sums in a chunk, [G, M, C, N]."""
    log_d = -LARGEST_RATE * torch.sigmoid(w)
    return log_d, log_d.cumsum(2)


def _solved(ab: Tensor, right: Tensor) -> Tensor:
    """Returns (I - AB)⁻¹ right, by substitution."""
    solved: Tensor = torch.linalg.solve_triangular(-ab, right, upper=False, unitriangular=True)
    return solved


def _step(w_rows: Tensor, kept: Tensor, total: Tensor) -> Tensor:
    """Returns what a chunk multiplies the state by from the right, [G, M, N, N]."""
    step = w_rows.mT @ kept
    step.diagonal(0, 2, 3).add_(torch.exp(total[:, :, -1]))
    return step


def _log_decays(w: Tensor, base: Tensor | None, like: Tensor, group: Group) -> Tensor:
    return _whole_rows(wkv5_6_log_decays(w, base, like.shape), group, w.dtype)


def _whole_rows(x: Tensor, group: Group, dtype: torch.dtype) -> Tensor:
    """Returns the group's part of `x` [B, T, H, N] as [G, T, N]."""
    return cut(x, group, x.shape[1], dtype).squeeze(1)


def _sums_from_zero(x: Tensor) -> Tensor:
    """Returns the running sums of `x` [G, T, N] before every token and after the last one."""
    zero = x.new_zeros(x.shape[0], 1, x.shape[2])
    return torch.cat((zero, x.cumsum(1)), 1)


_FORMS: dict[str, Callable[..., Any]] = {
    "wkv4_piece": _wkv4_piece,
    "wkv5_6_piece": _wkv5_6_piece,
    "wkv7_piece": _wkv7_piece,
    "wkv5_6_state_gradient": _wkv5_6_state_gradient,
    "wkv7_state_gradient": _wkv7_state_gradient,
}
