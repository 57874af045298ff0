"""Cuts [B, T, H, N] tensors into chunks and groups of heads, for the chunked backends.

A chunk is `length` consecutive tokens of one batch row and head. A group is a set of (row, head)
pairs that is worked on at once: on a CPU about as much as its cache holds, because element-wise
steps there are bound by memory traffic and by page faults of large temporaries; elsewhere enough to
fill the device without its memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# Numbers in one tensor of a group; a backward pass holds some thirty such tensors in fp32.
CPU_GROUP_NUMBERS = 2**19
DEVICE_GROUP_NUMBERS = 2**25


class Group(NamedTuple):
    """Rows and heads that are worked on at once; G = rows * heads."""

    rows: slice
    heads: slice


def groups(like: Tensor) -> Iterator[Group]:
    """Yields the groups that together cover every row and head of `like`, [B, T, H, N]."""
    batch, time, heads, size = like.shape
    numbers = CPU_GROUP_NUMBERS if like.device.type == "cpu" else DEVICE_GROUP_NUMBERS
    pairs_at_once = max(1, numbers // (time * size))
    heads_at_once = min(heads, pairs_at_once)
    rows_at_once = max(1, pairs_at_once // heads)
    for row in range(0, batch, rows_at_once):
        for head in range(0, heads, heads_at_once):
            yield Group(slice(row, row + rows_at_once), slice(head, head + heads_at_once))


def cut(x: Tensor, group: Group, length: int, dtype: torch.dtype, pad: float = 0.0) -> Tensor:
    """Returns the group's part of `x` [B, T, H, N] in chunks, [G, M, length, N].

    pad: the value of the tokens that fill the last chunk. May share memory with `x`.
    """
    x = x[group.rows, :, group.heads].transpose(1, 2).to(dtype)  # [rows, heads, T, N]
    missing = -x.shape[2] % length
    if missing:
        x = functional.pad(x, (0, 0, 0, missing), value=pad)
    return x.reshape(x.shape[0] * x.shape[1], -1, length, x.shape[3])


def paste(out: Tensor, group: Group, x: Tensor) -> None:
    """Writes chunks `x` [G, M, length, N] into the group's part of `out` [B, T, H, N]."""
    target = out[group.rows, :, group.heads].transpose(1, 2)
    rows, heads, time, size = target.shape
    target.copy_(x.reshape(rows, heads, -1, size)[:, :, :time])


def cut_marks(reset: Tensor, group: Group, heads: int, length: int) -> Tensor:
    """Returns `reset` [B, T] for the group's chunks, bool [G, M, length], the tail False.

    heads: the number of heads in the group.
    """
    marks = reset[group.rows]
    missing = -marks.shape[1] % length
    if missing:
        marks = functional.pad(marks, (0, missing), value=False)
    marks = marks.reshape(marks.shape[0], 1, -1, length).expand(-1, heads, -1, -1)
    return marks.reshape(-1, marks.shape[2], length)


def pairs(x: Tensor, group: Group) -> Tensor:
    """Returns a view [G, ...] of the group's part of the contiguous `x` [B, H, ...]."""
    return x[group.rows, group.heads].view(-1, *x.shape[2:])


def chunk_length(time: int, longest: int) -> int:
    """Returns the tokens per chunk: `longest`, or the next power of two for shorter sequences."""
    return min(longest, 1 << (time - 1).bit_length())


def chunk_states(like: Tensor, shape: torch.Size, longest: int, state: Tensor | None) -> Tensor:
    """Returns room for the state before every chunk and the final one, [B, H, M + 1, N, N].

    like: gives dtype and device.  shape: [B, T, H, N] of the sequences.  longest: tokens per chunk.
    state: put first; None: zero.
    """
    batch, time, heads, size = shape
    count = -(-time // chunk_length(time, longest))
    states = like.new_empty(batch, heads, count + 1, size, size)
    states[:, :, 0] = 0 if state is None else state
    return states


def stacked_products(p: Tensor, x: Tensor, q: Tensor, y: Tensor) -> Tensor:
    """Returns p * x over q * y, stacked along the token axis."""
    # no out=: torch.compile does not take one with gaps between its rows
    out = torch.cat((x, y), 2)
    out[:, :, : x.shape[2]] *= p
    out[:, :, x.shape[2] :] *= q
    return out
