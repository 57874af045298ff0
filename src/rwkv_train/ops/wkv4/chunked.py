"""WKV-4 with all chunks of tokens stepped together; runs and trains anywhere torch runs.

The recurrence is a scan: two neighbouring stretches of tokens combine into one. So the sequence is
cut into M chunks of C tokens, and each of these steps works on all rows, chunks and channels:

1. C steps: every chunk's own state, as if nothing came before it;
2. M steps: the state at the start of every chunk, by combining those;
3. C steps: the outputs.

Some 4 sqrt(T) steps take the place of T. Backward runs the same three stages in reverse on the
adjoint of the two sums, kept scaled by an exponent R as the sums are by pp, so that no exponential
overflows for any k. Inputs and the state at the start of each chunk are kept for it.

Source: RWKV paper, appendix on the numerically safe form; the scan is Blelloch's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rwkv_train.ops.backends.dispatch import serves_every_call, without_autocast
from rwkv_train.ops.precision import log_decay
from rwkv_train.ops.wkv4 import reference
from rwkv_train.ops.wkv4.reference import EMPTY, WKV4_LARGEST_LOG_RATE, Sums, empty_state

refuses = serves_every_call


def run(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Sums | None, reset: Tensor | None
) -> tuple[Tensor, Sums]:
    """Returns outputs [B, T, A] and final state (aa, bb, pp), each [B, A].

    Shapes as in `rwkv_train.ops.wkv4.wkv4`; w, u and state in the compute dtype.
    """
    batch, time, width = v.shape
    if time == 1:
        # one step of the recurrence: nothing to gain from a chunk of one token
        return reference.run(w, u, k, v, state, reset)
    sums = empty_state(w, (batch, width)) if state is None else state
    length = balanced_chunk_length(time)
    whole = time - time % length
    outputs = []
    # A shorter last chunk is a call of its own: padding would decay the final state further.
    for part in (slice(0, whole), slice(whole, time)):
        if part.start < part.stop:
            marks = None if reset is None else reset[:, part]
            tokens = min(length, part.stop - part.start)
            y, *rest = _ChunkedWkv4.apply(  # type: ignore[no-untyped-call]  # torch's own
                w, u, k[:, part], v[:, part], *sums, marks, tokens
            )
            sums = (rest[0], rest[1], rest[2])
            outputs.append(y)
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
    return y, sums


def balanced_chunk_length(time: int) -> int:
    """Returns the tokens per chunk, for few steps: a power of 2, sqrt(time) / 3 to sqrt(time)."""
    return 1 << max(0, (time.bit_length() - 2) // 2)


class _ChunkedWkv4(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        w: Tensor,
        u: Tensor,
        k: Tensor,
        v: Tensor,
        aa: Tensor,
        bb: Tensor,
        pp: Tensor,
        reset: Tensor | None,
        length: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        step = log_decay(w, WKV4_LARGEST_LOG_RATE)
        kc, vc = _cut(k, length, w.dtype), _cut(v, length, w.dtype)
        marks = None if reset is None else _cut(reset.unsqueeze(2), length, torch.bool)
        starts = _chunk_starts(step, kc, vc, (aa, bb, pp), marks)
        outputs = torch.empty_like(vc)
        sums = starts
        for i in range(length):
            sums = _reset(sums, marks, i)
            outputs[i], *_ = _read(sums, u + kc[i], vc[i])
            sums = _join(sums, step, (vc[i], 1, kc[i]))
        final = _each(lambda x: x[:, -1].clone(), sums)
        ctx.save_for_backward(w, u, k, v, reset, *starts, final[2])
        ctx.length = length
        ctx.mark_non_differentiable(final[2])
        return (_paste(outputs, v), *final)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_y: Tensor, grad_aa: Tensor, grad_bb: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        w, u, k, v, reset, *starts, final_pp = ctx.saved_tensors
        with without_autocast(v.device):
            step = log_decay(w, WKV4_LARGEST_LOG_RATE)
            inputs = tuple(_cut(x, ctx.length, w.dtype) for x in (k, v, grad_y))
            marks = None if reset is None else _cut(reset.unsqueeze(2), ctx.length, torch.bool)
            aa, bb, pp = starts
            grad_step, grad_u, grad_k, grad_v, first = _backward(
                step, u, inputs, (aa, bb, pp), (grad_aa, grad_bb, -final_pp), marks
            )
            aa, bb, pp = _each(lambda x: x[:, 0], (aa, bb, pp))
            factor = torch.exp(first[2] + pp)
            grad_aa, grad_bb = first[0] * factor, first[1] * factor
            grad_pp = aa * grad_aa + bb * grad_bb
        # d step / d w = step
        return (
            grad_step * step,
            grad_u,
            _paste(grad_k, k),
            _paste(grad_v, v),
            grad_aa,
            grad_bb,
            grad_pp,
            None,
            None,
        )


def _backward(
    step: Tensor,
    u: Tensor,
    inputs: tuple[Tensor, ...],
    starts: Sums,
    adjoint: Sums,
    marks: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Sums]:
    """Returns the gradients of log-decay [A], u [A], k, v (chunks) and the first sums' adjoint.

    inputs: k, v and the gradient of y, [C, B, M, A]. adjoint: that of the final sums, scaled,
    (A, B, R) each [B, A]; the true adjoints are A exp(R) and B exp(R).
    """
    kc, vc, gy = inputs
    length = kc.shape[0]
    # Forwards again with everything that the way back needs: kept since the first pass it would be
    # several numbers per token and channel.
    before, pulls, grad_v = [], [], torch.empty_like(vc)
    grad_k, sums = torch.empty_like(kc), starts
    for i in range(length):
        sums = _reset(sums, marks, i)
        before.append(sums)
        y, weight, norm, top = _read(sums, u + kc[i], vc[i])
        pull = gy[i] / norm
        pulls.append((pull, -pull * y, -top))
        # what the token's own term in y contributes; the part through later tokens is added below
        torch.mul(pull, weight, out=grad_v[i])
        torch.mul(grad_v[i], vc[i] - y, out=grad_k[i])
        sums = _join(sums, step, (vc[i], 1, kc[i]))
    grad_u = grad_k.sum((0, 1, 2))

    (a, b, scale), first = _chunk_ends(step, pulls, adjoint, marks)
    grad_step = torch.zeros_like(step)
    for i in reversed(range(length)):
        written = torch.exp(kc[i] + scale)
        grad_v[i].addcmul_(written, a)
        grad_k[i].addcmul_(written, torch.addcmul(b, a, vc[i]))
        aa, bb, pp = before[i]
        kept = torch.exp(step + scale + pp)
        grad_step += (kept * torch.addcmul(a * aa, b, bb)).sum((0, 1))
        a, b, scale = _reset(_join((a, b, scale), step, pulls[i]), marks, i)
    return grad_step, grad_u, grad_k, grad_v, first


def _chunk_starts(step: Tensor, kc: Tensor, vc: Tensor, state: Sums, marks: Tensor | None) -> Sums:
    """Returns the sums before each chunk, [B, M, A], given those before the first, [B, A]."""
    length, _, chunks, _ = kc.shape
    if chunks == 1:
        return _each(lambda x: x.unsqueeze(1), state)
    # The last chunk is skipped: nothing starts after it.
    kc, vc = kc[:, :, :-1], vc[:, :, :-1]
    marks = None if marks is None else marks[:, :, :-1]
    own: Sums = (vc[0], torch.ones_like(vc[0]), kc[0])
    for i in range(1, length):
        own = _join(_reset(own, marks, i), step, (vc[i], 1, kc[i]))
    return _scan(state, own, length * step, marks, range(chunks - 1))


def _chunk_ends(
    step: Tensor, pulls: list[Sums], adjoint: Sums, marks: Tensor | None
) -> tuple[Sums, Sums]:
    """Returns the adjoints after each chunk, [B, M, A], and that before the first, [B, A]."""
    length, chunks = len(pulls), pulls[0][0].shape[1]
    own = _reset(pulls[-1], marks, length - 1)
    for i in reversed(range(length - 1)):
        own = _reset(_join(own, step, pulls[i]), marks, i)
    adjoints = _scan(adjoint, own, length * step, marks, range(chunks - 1, -1, -1))
    ends = _each(lambda x: x[:, :-1].flip(1), adjoints)
    return ends, _each(lambda x: x[:, -1], adjoints)


def _scan(first: Sums, own: Sums, distance: Tensor, marks: Tensor | None, order: range) -> Sums:
    """Stacks along axis 1 `first` and its sums with own[:, m], joined one by one in `order`."""
    carried, all_carried = first, [first]
    cut = None if marks is None else marks.any(0)  # [B, M, 1]
    for m in order:
        if cut is not None:
            carried = _reset(carried, cut[None, :, m], 0)
        carried = _join(carried, distance, _at(own, m))
        all_carried.append(carried)
    aa, bb, pp = (torch.stack(parts, 1) for parts in zip(*all_carried))
    return aa, bb, pp


def _at(sums: Sums, m: int) -> Sums:
    """Returns the sums of chunk m, each [B, A], of those of all, each [B, M, A]."""
    return _each(lambda x: x[:, m], sums)


def _each(function: Callable[[Tensor], Tensor], sums: Sums) -> Sums:
    """Applies `function` to numerator, denominator and exponent."""
    aa, bb, pp = sums
    return function(aa), function(bb), function(pp)


def _join(sums: Sums, distance: Tensor, other: tuple[Tensor, Tensor | int, Tensor]) -> Sums:
    """Returns scaled sums moved `distance` (a log-decay, <= 0) away and added to `other`."""
    aa, bb, pp = sums
    moved = pp + distance
    top = torch.maximum(moved, other[2])
    kept, added = torch.exp(moved - top), torch.exp(other[2] - top)
    return kept * aa + added * other[0], kept * bb + added * other[1], top


def _read(sums: Sums, now: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns y, the token's scaled weight, the scaled denominator and the scale's exponent.

    now: u + k, the exponent of the current token.
    """
    aa, bb, pp = sums
    top = torch.maximum(pp, now)
    before, current = torch.exp(pp - top), torch.exp(now - top)
    norm = torch.addcmul(current, before, bb)
    return torch.addcmul(before * aa, current, v) / norm, current, norm, top


def _reset(sums: Sums, marks: Tensor | None, i: int) -> Sums:
    """Returns `sums`, but empty where marks[i] is set."""
    if marks is None:
        return sums
    aa, bb, pp = sums
    return (
        aa.masked_fill(marks[i], 0),
        bb.masked_fill(marks[i], 0),
        pp.masked_fill(marks[i], EMPTY),
    )


def _cut(x: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Returns [B, T, A] as [C, B, M, A]: the token in front makes a step contiguous."""
    return torch.unflatten(x.to(dtype), 1, (-1, length)).permute(2, 0, 1, 3).contiguous()


def _paste(x: Tensor, like: Tensor) -> Tensor:
    """Returns chunks [C, B, M, A] as as [B, T, A] in the dtype of `like`."""
    return x.permute(1, 2, 0, 3).flatten(1, 2).to(like.dtype)
