"""Runs of consecutive elements of a tensor, as the boxes that torch.distributed.checkpoint stores.

ZeRO cuts parameters wherever a partition ends, in the middle of a row too; torch's checkpoints know
boxes alone, offsets and sizes in every dimension. A run is at most 2 d - 1 of them in d dimensions,
and each of these is a run again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Box(NamedTuple):
    """A part of a tensor: where it begins and how far it reaches, by dimension."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    def run(self, shape: Sequence[int]) -> range:
        """Returns the places of its elements in the flattened tensor, if they follow another."""
        first = 0
        for offset, length in zip(self.offsets, shape):
            first = first * length + offset
        return range(first, first + math.prod(self.sizes))


def boxes(shape: Sequence[int], first: int, last: int) -> Iterator[Box]:
    """Yields the boxes that are the elements `first` to `last` - 1 of a tensor, in their order."""
    if first >= last:
        return
    if not shape:
        yield Box((), ())
        return
    rest = tuple(shape[1:])
    row = math.prod(rest)
    # The whole rows lie between; the others belong to one row before and one behind them.
    begin, end = -(-first // row), last // row
    if begin > end:
        yield from _in_row(end, rest, first - end * row, last - end * row)
        return
    if first < begin * row:
        yield from _in_row(begin - 1, rest, first - (begin - 1) * row, row)
    if begin < end:
        yield Box((begin, *(0 for _ in rest)), (end - begin, *rest))
    if end * row < last:
        yield from _in_row(end, rest, 0, last - end * row)


def _in_row(row: int, shape: tuple[int, ...], first: int, last: int) -> Iterator[Box]:
    for box in boxes(shape, first, last):
        yield Box((row, *box.offsets), (1, *box.sizes))
