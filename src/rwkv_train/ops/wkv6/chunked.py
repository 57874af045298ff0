"""WKV-6 by matrix products over chunks of tokens; runs and trains anywhere torch runs.

With S the state a chunk starts from, P_t and Q_s the products of the chunk's decays before t and
after s, e the product of all, and A as in `rwkv_train.ops.chunked.halving`:

    Y  = (R * P) S + A V + (bonus) V
    S' = diag(e) S + (K * Q)^T V

Inputs and the state at the start of each chunk are kept for backward; the rest is computed again.

A reset at token t is a decay of 0 there and an r_t that does not see the state, without masks.

Source: gated linear attention in chunks (Yang et al. 2023, section 4), with the halving in place
of divisions by products of decays.
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
)
from rwkv_train.ops.chunked.halving import halve, halve_backward
from rwkv_train.ops.precision import compute_dtype, decay_input, log_decay
from rwkv_train.ops.wkv6 import reference

refuses = serves_every_call

WKV6_CHUNK = 64


def run(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    base: Tensor | None,
    state: Tensor | None,
    reset: Tensor | None,
    *,
    w_gradient: Tensor | None = None,
    with_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Returns outputs [B, T, H, N] and final state [B, H, N_value, N_key].

    Shapes as in `rwkv_train.ops.wkv6.wkv6`; w, u, base and state in the compute dtype.
    w may be expanded.
    """
    if v.shape[1] == 1:
        # one step of the recurrence: nothing to gain from a chunk of one token
        return reference.run(
            r, k, v, w, u, base, state, reset, w_gradient=w_gradient, with_state=with_state
        )
    w = decay_input(w, base, w_gradient)
    y, final = _ChunkedWkv6.apply(  # type: ignore[no-untyped-call]  # torch's own
        r, k, v, w, u, state, reset
    )
    return y, final if with_state else None


class _Inputs(NamedTuple):
    """One group's inputs in chunks, [G, M, C, N]."""

    r: Tensor
    k: Tensor
    v: Tensor
    u: Tensor
    """[G, 1, 1, N]"""
    log_rate: Tensor
    """the logarithm of the decay as w gives it"""
    log_d: Tensor
    """the same, but -inf at the tokens before which the state is reset"""
    reads: Tensor
    """r, but 0 at those tokens"""
    marks: Tensor | None
    """bool [G, M, C, 1], True at those tokens"""


class _ChunkedWkv6(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        r: Tensor,
        k: Tensor,
        v: Tensor,
        w: Tensor,
        u: Tensor,
        state: Tensor | None,
        reset: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        y = torch.empty_like(v, memory_format=torch.contiguous_format)
        states = chunk_states(w, v.shape, WKV6_CHUNK, state)
        for group in groups(v):
            inputs = _gather(group, r, k, v, w, u, reset)
            paste(y, group, _forward_group(inputs, pairs(states, group)))
        ctx.save_for_backward(r, k, v, w, u, states, reset)
        ctx.has_state = state is not None
        return y, states[:, :, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_final: Tensor) -> tuple[Tensor | None, ...]:
        r, k, v, w, u, states, reset = ctx.saved_tensors
        with without_autocast(v.device):
            grads = [torch.empty(v.shape, dtype=x.dtype, device=x.device) for x in (r, k, v, w)]
            grad_u = torch.zeros_like(u)
            grad_state = grad_final.clone(memory_format=torch.contiguous_format)
            for group in groups(v):
                inputs = _gather(group, r, k, v, w, u, reset)
                gy = cut(grad_y, group, inputs.v.shape[2], u.dtype)
                parts, group_grad_u, first = _backward_group(
                    inputs, gy, pairs(states, group), pairs(grad_state, group)
                )
                for grad, part in zip(grads, parts):
                    paste(grad, group, part)
                grad_u[group.heads] += group_grad_u.view(-1, *grad_u[group.heads].shape).sum(0)
                pairs(grad_state, group).copy_(first)
        return (*grads, grad_u, grad_state if ctx.has_state else None, None)


def _forward_group(inputs: _Inputs, states: Tensor) -> Tensor:
    """Returns outputs in chunks; fills `states` [G, M + 1, N_value, N_key] from its first entry."""
    r, k, v = inputs.r, inputs.k, inputs.v
    inner = halve(inputs.reads, k, inputs.log_d, keep_levels=False)
    inner.matrix.diagonal(0, 2, 3).copy_((r * inputs.u * k).sum(-1))
    added = v.mT @ inner.writes
    for m in range(added.shape[1]):
        # no out=: torch.compile does not take one with gaps between its rows
        states[:, m + 1] = torch.addcmul(added[:, m], states[:, m], inner.whole[:, m, None])
    return inner.reads @ states[:, :-1].mT + inner.matrix @ v


def _backward_group(
    inputs: _Inputs, gy: Tensor, states: Tensor, grad_final: Tensor
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor, Tensor]:
    """Returns the gradients of (r, k, v, w) in chunks, of u [G, N] and the first state [G, N, N].

    Source: the transpose of the forward formulas; the decay's gradient as in `ops.chunked.halving`.
    """
    r, k, v = inputs.r, inputs.k, inputs.v
    inner = halve(inputs.reads, k, inputs.log_d, keep_levels=True)
    inner.matrix.diagonal(0, 2, 3).copy_((r * inputs.u * k).sum(-1))
    # the gradient of the state after each chunk
    grad_states = torch.empty_like(states[:, 1:])
    added = gy.mT @ inner.reads
    grad_states[:, -1] = grad_final
    for m in reversed(range(1, added.shape[1])):
        whole = inner.whole[:, m, None]
        grad_states[:, m - 1] = torch.addcmul(added[:, m], grad_states[:, m], whole)
    grad_first = torch.addcmul(added[:, 0], grad_states[:, 0], inner.whole[:, 0, None])

    grad_v = inner.matrix.mT @ gy + inner.writes @ grad_states.mT
    grad_matrix = gy @ v.mT
    grad_r = gy @ states[:, :-1]
    grad_k = v @ grad_states
    grad_whole = inner.whole * (states[:, :-1] * grad_states).sum(2)
    grad_w = halve_backward(inner.levels, grad_matrix, grad_r, grad_k, grad_whole)
    grad_w *= inputs.log_rate
    # Before the bonus, through which a token that starts a document sees itself all the same.
    if inputs.marks is not None:
        grad_r.masked_fill_(inputs.marks, 0)

    grad_bonus = grad_matrix.diagonal(0, 2, 3).unsqueeze(-1)
    from_k = grad_bonus * k
    grad_r.addcmul_(from_k, inputs.u)
    grad_k.addcmul_(grad_bonus * r, inputs.u)
    grad_u = (from_k * r).sum((1, 2))
    return (grad_r, grad_k, grad_v, grad_w), grad_u, grad_first


def _gather(
    group: Group, r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor, reset: Tensor | None
) -> _Inputs:
    dtype = compute_dtype(v.dtype)
    length = chunk_length(v.shape[1], WKV6_CHUNK)
    r, k, v = (cut(x, group, length, dtype) for x in (r, k, v))
    # The tail is filled with tokens that neither write nor decay.
    log_rate = log_decay(cut(w, group, length, dtype, pad=-torch.inf))
    log_d, reads, marks = log_rate, r, None
    u = u[group.heads]
    if reset is not None:
        marks = cut_marks(reset, group, u.shape[0], length).unsqueeze(-1)
        log_d, reads = log_rate.masked_fill(marks, -torch.inf), r.masked_fill(marks, 0)
    u = u.repeat(r.shape[0] // u.shape[0], 1)[:, None, None]
    return _Inputs(r, k, v, u, log_rate, log_d, reads, marks)
