"""The part that sample n comes from while shares are constant: by a table, or down a tree.

`ShareTable` lists a whole period and keeps every part within one sample of its share, for every n.
Pick m of part i, which has a_i picks in the period P, is due within samples
floor((m - 1) P / a_i) + 1 to ceil(m P / a_i), and of all possible picks the one that is due first
is taken. Such a schedule always exists (earliest deadline first is optimal for jobs of length one;
these windows are those of proportionate fairness, Baruah et al. 1996).

`ShareTree` serves periods that are too long to be listed, as of a thousand weights with many
digits: a tree halves the weights again and again, and at each fork the m-th sample goes to the
left when round(m left / total) has just become larger. A sample costs O(log parts), nothing is
listed, and every part is within 2.5 samples of its share, for every n: a fork is off by 1/2 at the
most, and passes on its own error times the share of the side, at most 3/4 where another fork is.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

import numpy as np

# Longest period that is listed: a sixth of a second, and a megabyte.
LONGEST_TABLE = 100_000


class ShareSchedule(Protocol):
    """The parts of samples n = 1, 2, ... at constant shares."""

    def pick(self, n: int) -> tuple[int, int]:
        """Returns the part of sample n, and the sample's number within that part, from 1."""

    def counts(self, n: int) -> list[int]:
        """Returns how many of samples 1 ... n come from each part."""


def schedule_of(weights: Sequence[int]) -> ShareSchedule:
    """Returns the schedule for whole weights, without a common factor, that are not all 0."""
    return ShareTable(weights) if sum(weights) <= LONGEST_TABLE else ShareTree(weights)


class ShareTable:
    """A `ShareSchedule` that lists one period: sum(weights) samples."""

    def __init__(self, weights: Sequence[int]) -> None:
        self._weights = list(weights)
        self._length = sum(weights)
        self._parts, self._ranks = _earliest_deadlines_first(self._weights, self._length)

    def pick(self, n: int) -> tuple[int, int]:
        """Returns the part of sample n, and the sample's number within that part, from 1."""
        passes, place = divmod(n - 1, self._length)
        part = int(self._parts[place])
        return part, passes * self._weights[part] + int(self._ranks[place]) + 1

    def counts(self, n: int) -> list[int]:
        """Returns how many of samples 1 ... n come from each part."""
        passes, place = divmod(n, self._length)
        within = np.bincount(self._parts[:place], minlength=len(self._weights)).tolist()
        return [passes * weight + some for weight, some in zip(self._weights, within)]


class _Fork(NamedTuple):
    """Two sides with their weights; a side is the number of a fork, or ~part."""

    left_weight: int
    total: int
    left: int
    right: int

    def lefts(self, n: int) -> int:
        """Returns how many of the first n samples of this fork go to the left."""
        return (2 * n * self.left_weight + self.total) // (2 * self.total)


class ShareTree:
    """A `ShareSchedule` for weights of any size; those of 0 are never picked."""

    def __init__(self, weights: Sequence[int]) -> None:
        self._parts = len(weights)
        # The heavier first, so that halves are as equal as they can be; equal ones by their place.
        order = sorted((i for i, weight in enumerate(weights) if weight), key=lambda i: -weights[i])
        self._forks: list[_Fork] = []
        self._root = self._grow(order, [0, *accumulate(weights[i] for i in order)])

    def pick(self, n: int) -> tuple[int, int]:
        """Returns the part of sample n, and the sample's number within that part, from 1."""
        side, number = self._root, n
        while side >= 0:
            fork = self._forks[side]
            lefts = fork.lefts(number)
            if lefts > fork.lefts(number - 1):
                side, number = fork.left, lefts
            else:
                side, number = fork.right, number - lefts
        return ~side, number

    def counts(self, n: int) -> list[int]:
        """Returns how many of samples 1 ... n come from each part."""
        found = [0] * self._parts
        waiting = [(self._root, n)]
        while waiting:
            side, number = waiting.pop()
            if side < 0:
                found[~side] = number
                continue
            fork = self._forks[side]
            lefts = fork.lefts(number)
            waiting += [(fork.left, lefts), (fork.right, number - lefts)]
        return found

    def _grow(self, order: Sequence[int], before: Sequence[int]) -> int:
        """Makes the forks over the parts of `order`; returns the uppermost side.

        before: weights in front of each part, and of all.
        """
        # By hand, not by recursion: weights 1, 2, 4, 8, ... make a tree as deep as a list.
        sides: list[int] = [0]
        waiting = [(0, len(order), 0)]
        while waiting:
            start, end, place = waiting.pop()
            if end - start == 1:
                sides[place] = ~order[start]
                continue
            cut = _half(before, start, end)
            sides[place] = len(self._forks)
            left_weight = before[cut] - before[start]
            self._forks.append(_Fork(left_weight, before[end] - before[start], 0, 0))
            waiting += [(start, cut, len(sides)), (cut, end, len(sides) + 1)]
            sides += [0, 0]
        # Fork k, in the order of making, has the sides 2 k + 1 and 2 k + 2.
        self._forks = [
            fork._replace(left=sides[2 * k + 1], right=sides[2 * k + 2])
            for k, fork in enumerate(self._forks)
        ]
        return sides[0]


def _half(before: Sequence[int], start: int, end: int) -> int:
    """Returns where to cut parts start ... end - 1 so that both sides weigh nearly the same."""
    twice_middle = before[start] + before[end]
    low, high = start + 1, end - 1
    while low < high:
        cut = (low + high) // 2
        if 2 * before[cut] < twice_middle:
            low = cut + 1
        else:
            high = cut
    # The first cut behind the middle, or the one in front of it.
    if low > start + 1 and twice_middle - 2 * before[low - 1] <= 2 * before[low] - twice_middle:
        return low - 1
    return low


def _earliest_deadlines_first(
    weights: Sequence[int], length: int
) -> tuple[np.ndarray[tuple[int], np.dtype[np.int32]], np.ndarray[tuple[int], np.dtype[np.int32]]]:
    """Returns [P] part of every sample of a period, and the part's earlier picks in it."""
    parts, ranks = np.zeros(length, np.int32), np.zeros(length, np.int32)
    # (first sample at which it may be picked, part) and (last one, part)
    waiting = [(1, part) for part, count in enumerate(weights) if count]
    possible: list[tuple[int, int]] = []
    picked = [0] * len(weights)
    heapq.heapify(waiting)
    for n in range(1, length + 1):
        # A pick becomes possible at its release, and is due at its deadline.
        while waiting and waiting[0][0] <= n:
            _, part = heapq.heappop(waiting)
            heapq.heappush(possible, (-(-(picked[part] + 1) * length // weights[part]), part))
        due, part = heapq.heappop(possible)
        assert n <= due, "earliest deadline first meets all deadlines"
        parts[n - 1], ranks[n - 1] = part, picked[part]
        picked[part] += 1
        if picked[part] < weights[part]:
            release = picked[part] * length // weights[part] + 1
            heapq.heappush(waiting, (max(release, n + 1), part))
    return parts, ranks
