"""WKV-7 by matrix products over chunks of tokens; runs and trains anywhere torch runs.

Rows are the C tokens of a chunk, S is the state it starts from, [N_value, N_key], c the running sum
of the log-decays and c' the same without the token itself. With A~ = A exp(c'), R~ = R exp(c),
K~ = K exp(-c), B~ = B exp(-c), K^ = K exp(c_C - c), B^ = B exp(c_C - c):

    AB = strict_lower(A~ B~^T)   AK = strict_lower(A~ K~^T)   RB = lower(R~ B~^T)   RK likewise
    W  = (I - AB)^-1 A~          U0 = (I - AB)^-1 AK V         U = W S^T + U0
    Y  = R~ S^T + RB U + RK V    S' = S (diag(exp(c_C)) + W^T B^) + U0^T B^ + V^T K^

so that only the last line is sequential. The decay is at least 0.5452 a token, hence exp(-c) stays
below 7e16 for 64 tokens. (I - AB)^-1 comes from substitution; the product form (I + AB)(I + AB^2)..
loses all digits when the keys of a chunk resemble each other.

Inputs and the state at the start of each chunk are kept for backward; the rest is computed again.

A reset cuts the pairs of tokens it lies between, and the state off the tokens beyond it.

Source: RWKV-7 paper (Goose), the chunked form of its generalised delta rule.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rwkv_train.ops.backends.dispatch import serves_every_call, without_autocast
from rwkv_train.ops.chunked.chunks import (
    Group,
    chunk_length,
    chunk_states,
    cut,
    cut_marks,
    groups,
    pairs,
    paste,
    stacked_products,
)
from rwkv_train.ops.precision import compute_dtype, decay_input
from rwkv_train.ops.wkv7 import reference
from rwkv_train.ops.wkv7.reference import LARGEST_RATE, with_bonus

refuses = serves_every_call

WKV7_CHUNK = 32


def run(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    base: Tensor | None,
    state: Tensor | None,
    reset: Tensor | None,
    *,
    bonus: Tensor | None = None,
    w_gradient: Tensor | None = None,
    with_state: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Returns outputs [B, T, H, N], final state [B, H, N_value, N_key] and s.

    Shapes as in `rwkv_train.ops.wkv7.wkv7`; w, base, bonus and state in the compute dtype.
    """
    if v.shape[1] == 1:
        # one step of the recurrence: nothing to gain from a chunk of one token
        options: dict[str, Any] = {"bonus": bonus, "w_gradient": w_gradient}
        return reference.run(r, w, k, v, a, b, base, state, reset, with_state=with_state, **options)
    r, k, weights = with_bonus(r, k, bonus)
    w = decay_input(w, base, w_gradient)
    y, final = _ChunkedWkv7.apply(  # type: ignore[no-untyped-call]  # torch's own
        r, w, k, v, a, b, state, reset
    )
    return y, final if with_state else None, weights


class _Segments(NamedTuple):
    """The cuts that resets make in a chunk; all bool, True = cut."""

    between: Tensor
    """[G, M, C, C]: a reset lies between the two tokens"""
    before: Tensor
    """[G, M, C, 1]: a reset lies between the chunk's start and the token, itself included"""
    after: Tensor
    """[G, M, C, 1]: a reset lies between the token and the chunk's end"""
    whole: Tensor
    """[G, M, 1]: a reset lies anywhere in the chunk"""


class _Inner(NamedTuple):
    """The part of a group's chunks that needs no state; stacked along the token axis."""

    v: Tensor
    log_d: Tensor
    """[G, M, C, N]"""
    left: Tensor
    """[G, M, 2C, N]: A~ over R~"""
    right: Tensor
    """[G, M, 2C, N]: B~ over K~"""
    seen: Tensor
    """[G, M, 2C, N]: A~ over R~, zero where a reset hides the state"""
    kept: Tensor
    """[G, M, 2C, N]: B^ over K^, zero where a reset follows"""
    scales: tuple[Tensor, Tensor, Tensor, Tensor]
    """exp(c'), exp(c), exp(-c), exp(c_C - c), each [G, M, C, N]"""
    matrix: Tensor
    """[G, M, 2C, 2C]: AB, AK over RB, RK"""
    inverse: Tensor
    """[G, M, C, C]: (I - AB)^-1"""
    w: Tensor
    """[G, M, C, N]"""
    u0: Tensor
    """[G, M, C, N]"""
    step: Tensor
    """[G, M, N, N]: what the state is multiplied by from the right"""
    segments: _Segments | None


class _ChunkedWkv7(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        r: Tensor,
        w: Tensor,
        k: Tensor,
        v: Tensor,
        a: Tensor,
        b: Tensor,
        state: Tensor | None,
        reset: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        y = torch.empty_like(v, memory_format=torch.contiguous_format)
        states = chunk_states(w, v.shape, WKV7_CHUNK, state)
        for group in groups(v):
            _, inner = _gather(group, (r, w, k, v, a, b), reset)
            paste(y, group, _forward_group(inner, pairs(states, group)))
        ctx.save_for_backward(r, w, k, v, a, b, states, reset)
        ctx.has_state = state is not None
        return y, states[:, :, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_final: Tensor) -> tuple[Tensor | None, ...]:
        *saved, states, reset = ctx.saved_tensors
        inputs = tuple(saved)
        with without_autocast(grad_y.device):
            grads = [torch.empty(grad_y.shape, dtype=x.dtype, device=x.device) for x in inputs]
            grad_state = grad_final.clone(memory_format=torch.contiguous_format)
            for group in groups(grad_y):
                parts, inner = _gather(group, inputs, reset)
                gy = cut(grad_y, group, inner.v.shape[2], states.dtype)
                group_grads, first = _backward_group(
                    parts, inner, gy, pairs(states, group), pairs(grad_state, group)
                )
                for grad, part in zip(grads, group_grads):
                    paste(grad, group, part)
                pairs(grad_state, group).copy_(first)
        return (*grads, grad_state if ctx.has_state else None, None)


def _forward_group(inner: _Inner, states: Tensor) -> Tensor:
    """Returns outputs in chunks; fills `states` [G, M + 1, N_value, N_key] from its first entry."""
    length = inner.v.shape[2]
    added = torch.cat((inner.u0, inner.v), 2).mT @ inner.kept
    for m in range(added.shape[1]):
        # no out=: with gaps between the states torch falls back to one product at a time
        states[:, m + 1] = torch.baddbmm(added[:, m], states[:, m], inner.step[:, m])
    starts = states[:, :-1]
    u = inner.u0 + inner.w @ starts.mT
    rows = inner.matrix[:, :, length:]
    return inner.seen[:, :, length:] @ starts.mT + rows @ torch.cat((u, inner.v), 2)


def _backward_group(
    parts: tuple[Tensor, ...], inner: _Inner, gy: Tensor, states: Tensor, grad_final: Tensor
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Returns the gradients of (r, w, k, v, a, b) in chunks and of the first state [G, N, N].

    Source: the transpose of the forward formulas; the decay's gradient as suffix sums of input
    times gradient, which the product structure of the decays allows.
    """
    r, w, k, a, b = parts
    length = gy.shape[2]
    starts = states[:, :-1]
    # the gradient of the state after each chunk
    effective = inner.seen[:, :, length:] + inner.matrix[:, :, length:, :length] @ inner.w
    added = gy.mT @ effective
    grad_states = torch.empty_like(starts)
    grad_states[:, -1] = grad_final
    for m in reversed(range(1, added.shape[1])):
        grad_states[:, m - 1] = torch.baddbmm(added[:, m], grad_states[:, m], inner.step[:, m].mT)
    grad_first = torch.baddbmm(added[:, 0], grad_states[:, 0], inner.step[:, 0].mT)

    writes = torch.cat((inner.u0 + inner.w @ starts.mT, inner.v), 2)
    grad_writes = inner.matrix[:, :, length:].mT @ gy + inner.kept @ grad_states.mT
    grad_z = inner.inverse.mT @ grad_writes[:, :, :length]
    grad_v = grad_writes[:, :, length:] + inner.matrix[:, :, :length, length:].mT @ grad_z

    grad_rows = torch.cat((grad_z, gy), 2)
    grad_matrix = _lower(grad_rows @ writes.mT, inner.segments)
    from_states = grad_rows @ starts
    to_states = writes @ grad_states
    if inner.segments is not None:
        from_states.masked_fill_(inner.segments.before.repeat(1, 1, 2, 1), 0)
        to_states.masked_fill_(inner.segments.after.repeat(1, 1, 2, 1), 0)
    grad_left = grad_matrix @ inner.right + from_states
    grad_right = grad_matrix.mT @ inner.left
    before, through, inverse, rest = inner.scales
    grad_a = before * grad_left[:, :, :length]
    grad_r = through * grad_left[:, :, length:]
    grad_b = inverse * grad_right[:, :, :length] + rest * to_states[:, :, :length]
    grad_k = inverse * grad_right[:, :, length:] + rest * to_states[:, :, length:]

    # log d_t collects what is read at t or later, less what was written at t or later
    read_before = a * grad_a
    net = r * grad_r - b * grad_b - k * grad_k + read_before
    final = (states[:, 1:] * grad_states).sum(2, keepdim=True)  # [G, M, 1, N]
    suffix = net.flip(2).cumsum(2).flip(2) - read_before + final
    # sigmoid(-w), not 1 - sigmoid(w): that would cancel for large w
    grad_w = suffix * inner.log_d * torch.sigmoid(-w)
    return (grad_r, grad_w, grad_k, grad_v, grad_a, grad_b), grad_first


def _gather(
    group: Group, inputs: tuple[Tensor, ...], reset: Tensor | None
) -> tuple[tuple[Tensor, ...], _Inner]:
    """Returns the group's (r, w, k, a, b) in chunks and all that needs no state."""
    r, w, k, v, a, b = inputs
    length = chunk_length(v.shape[1], WKV7_CHUNK)
    dtype = compute_dtype(v.dtype)
    r, k, v, a, b = (cut(x, group, length, dtype) for x in (r, k, v, a, b))
    # The tail is filled with tokens that neither write nor decay.
    w = cut(w, group, length, dtype, pad=-torch.inf)
    log_d = -LARGEST_RATE * torch.sigmoid(w)
    total = log_d.cumsum(2)
    exponents = (total - log_d, total, -total, total[:, :, -1:] - total)
    before, through, inverse, rest = (torch.exp(x) for x in exponents)
    left = stacked_products(before, a, through, r)
    right = stacked_products(inverse, b, inverse, k)
    kept = stacked_products(rest, b, rest, k)
    whole = through[:, :, -1]  # [G, M, N]

    segments, seen = None, left
    if reset is not None:
        rows = reset[group.rows].shape[0]
        segments = _segments(cut_marks(reset, group, v.shape[0] // rows, length))
        seen = left.masked_fill(segments.before.repeat(1, 1, 2, 1), 0)
        kept = kept.masked_fill(segments.after.repeat(1, 1, 2, 1), 0)
        whole = whole.masked_fill(segments.whole, 0)

    matrix = _lower(left @ right.mT, segments)
    unit = torch.eye(length, dtype=dtype, device=v.device)
    inverse_ab = torch.linalg.solve_triangular(
        -matrix[:, :, :length, :length], unit, upper=False, unitriangular=True
    )
    u0 = inverse_ab @ (matrix[:, :, :length, length:] @ v)
    from_state = inverse_ab @ seen[:, :, :length]
    step = from_state.mT @ kept[:, :, :length]
    step.diagonal(0, 2, 3).add_(whole)
    scales = (before, through, inverse, rest)
    known = (v, log_d, left, right, seen, kept, scales)
    inner = _Inner(*known, matrix, inverse_ab, from_state, u0, step, segments)
    return (r, w, k, a, b), inner


def _segments(marks: Tensor) -> _Segments:
    # marks: bool [G, M, C], True where the state is reset before the token
    count = marks.cumsum(2)
    last = count[:, :, -1:]
    return _Segments(
        between=count.unsqueeze(3) != count.unsqueeze(2),
        before=(count > 0).unsqueeze(3),
        after=(count != last).unsqueeze(3),
        whole=last > 0,
    )


def _lower(matrix: Tensor, segments: _Segments | None) -> Tensor:
    """Removes from `matrix` [G, M, 2C, 2C], in place, the pairs that do not see each other.

    Rows of A see the tokens before them, rows of R also their own.
    """
    length = matrix.shape[2] // 2
    own = matrix.new_ones(length, length).tril()
    earlier = own.tril(-1)
    # A product, since masked_fill is several times slower with a mask that is broadcast; the
    # entries it removes are finite, see the bound on exp(-c) above.
    matrix *= torch.cat((torch.cat((earlier, earlier), 1), torch.cat((own, own), 1)))
    if segments is not None:
        # [G, M, 2, C, 2, C]
        blocks = torch.unflatten(torch.unflatten(matrix, 3, (2, length)), 2, (2, length))
        blocks.masked_fill_(segments.between[:, :, None, :, None], 0)
    return matrix
