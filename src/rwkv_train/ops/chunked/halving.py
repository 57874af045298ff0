"""Decayed products inside a chunk, in range for every decay (WKV-5 and WKV-6).

Inside a chunk of C tokens (a power of two) every token t reads every earlier token s through

    A[t, s] = sum_i R[t, i] K[s, i] prod_{s<j<t} d_j[i]        for s < t, else 0

Written as one matrix product it needs 1 / prod(d), which overflows. Halving avoids that: for
h = 1, 2, 4, ..., C/2 the chunk is cut into blocks of 2h tokens with a first and a second half; the
pairs with s in the first and t in the second half of a block are one h x h matrix product of
R[t] * prod_{second half, j<t} d_j and K[s] * prod_{first half, j>s} d_j. Every pair occurs at one
level, and every factor is at most 1. A level's scaled R and K come from those of the level below:
the second half of R is multiplied by the product of the whole first half, and the other way round.

The product over a half is one exponential of summed logarithms, so that a decay that is the same
for all tokens is not rounded once and then raised to a power. Nothing is ever divided by a product,
so a decay of exactly 0 (a logarithm of -inf) does no harm.

Tensors are [G, M, C, N]: groups, chunks, tokens, channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Below this block size a batched matrix product costs more than its few multiplications.
SMALLEST_PRODUCT = 4


class Level(NamedTuple):
    """The values that one level's backward needs; nb blocks of 2 * half tokens in a chunk."""

    half: int
    reads: Tensor
    """[G, M, nb, half, N]: R of the second halves, scaled up to the first half's end"""
    writes: Tensor
    """[G, M, nb, half, N]: K of the first halves, scaled up to the second half's start"""
    whole: Tensor
    """[G, M, nb, 2, 1, N]: the product of the decays of each half"""


class Halved(NamedTuple):
    """The chunk matrix and what the chunk exchanges with the state."""

    matrix: Tensor
    """[G, M, C, C]: A, zero on and above the diagonal"""
    reads: Tensor
    """[G, M, C, N]: R[t] * prod_{j<t} d_j"""
    writes: Tensor
    """[G, M, C, N]: K[s] * prod_{j>s} d_j"""
    whole: Tensor
    """[G, M, N]: the product of all decays of the chunk"""
    levels: list[Level]
    """empty unless they were asked for"""


def halve(r: Tensor, k: Tensor, log_d: Tensor, *, keep_levels: bool) -> Halved:
    """Returns A and its companions for R = r, K = k and decays exp(log_d), each [G, M, C, N]."""
    length = r.shape[2]
    matrix = r.new_zeros(*r.shape[:2], length, length)
    reads, writes = r.clone(), k.clone()
    levels: list[Level] = []
    log_whole = log_d  # [G, M, number of blocks, N]
    half = 1
    while half < length:
        second, first = _half(reads, half, 1), _half(writes, half, 0)
        _blocks(matrix, half).copy_(second @ first.mT)
        log_blocks = torch.unflatten(log_whole, 2, (-1, 2))  # [G, M, nb, 2, N]
        whole = torch.exp(log_blocks).unsqueeze(4)
        if keep_levels:
            # Copies, since both halves are scaled in place next.
            levels.append(Level(half, second.clone(), first.clone(), whole))
        second *= whole[:, :, :, 0]
        first *= whole[:, :, :, 1]
        log_whole = log_blocks.sum(3)
        half *= 2
    return Halved(matrix, reads, writes, torch.exp(log_whole[:, :, 0]), levels)


def halve_backward(
    levels: list[Level],
    grad_matrix: Tensor,
    grad_reads: Tensor,
    grad_writes: Tensor,
    grad_log_whole: Tensor,
) -> Tensor:
    """Returns the gradient of log d, [G, M, C, N]; turns two others in place into those of r and k.

    grad_matrix: gradient of `Halved.matrix`; only its strictly lower part is read.
    grad_reads, grad_writes: contiguous; on entry the gradients of `Halved.reads` and
        `Halved.writes`, on return those of r and k.
    grad_log_whole: [G, M, N], gradient of the logarithm of `Halved.whole`.

    From the top level down: the logarithm of a half's product collects what the other half's reads
    or writes lost through it, and hands its sum to both of its own halves. Nothing is subtracted,
    so the decay's gradient is as exact as the others.
    """
    grad_log = grad_log_whole.unsqueeze(2)  # [G, M, number of blocks, N]
    for half, reads, writes, whole in reversed(levels):
        second, first = _half(grad_reads, half, 1), _half(grad_writes, half, 0)
        second *= whole[:, :, :, 0]
        first *= whole[:, :, :, 1]
        grad_log = torch.stack(
            (grad_log + (second * reads).sum(3), grad_log + (first * writes).sum(3)), 3
        ).flatten(2, 3)
        block = _blocks(grad_matrix, half)
        _add_product(second, block, writes)
        _add_product(first, block.mT, reads)
    return grad_log


def _half(x: Tensor, half: int, which: int) -> Tensor:
    # [G, M, nb, half, N], a view: the first (0) or second (1) half of every block
    return torch.unflatten(x, 2, (-1, 2, half))[:, :, :, which]


def _blocks(matrix: Tensor, half: int) -> Tensor:
    # [G, M, nb, half, half], a view: rows in a second half, columns in its first half
    blocks = torch.unflatten(torch.unflatten(matrix, 3, (-1, 2, half)), 2, (-1, 2, half))
    return blocks[:, :, :, 1, :, :, 0].diagonal(0, 2, 4).permute(0, 1, 4, 2, 3)


def _add_product(out: Tensor, block: Tensor, x: Tensor) -> None:
    # out += block @ x, with block [.., half, half] and out, x [.., half, N]
    half = block.shape[-1]
    if half >= SMALLEST_PRODUCT:
        # not baddbmm_: with the gaps in `out` torch falls back to one product at a time
        out.add_(block @ x)
        return
    for t in range(half):
        for s in range(half):
            out[..., t, :].addcmul_(block[..., t, s, None], x[..., s, :])
