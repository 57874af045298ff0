"""The data set each sample comes from: exact proportions at every point of a run, without replay.

With constant shares the picks repeat with a period P, the common denominator: part i is picked
a_i = P share_i times in it. Pick m of part i is due within samples floor((m - 1) P / a_i) + 1 to
ceil(m P / a_i) of the period, and of all possible picks the one that is due first is taken.
Such a schedule always exists, and so part i has less than one sample more or less than n share_i
among the first n, for every n. (Earliest deadline first is optimal for jobs of length one; these
windows are those of proportionate fairness, Baruah et al. 1996.)

Shares that change, linearly over N samples, do so in up to 1024 steps: within each the share is
constant, with a period of its own, and the counts at the end of a step follow the integral of the
line. Counts of earlier picks come from the table of steps, so that sample n needs no replay.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from math import floor, isqrt, lcm
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MOST_STEPS = 1024
# Longest period of a step while shares change: `_order` lists every sample of it.
_LONGEST_PERIOD = 4096


class _Step(NamedTuple):
    """Constant shares from sample `first` (from 0) on: counts per period, and counts before."""

    first: int
    before: tuple[int, ...]
    period: tuple[int, ...]


class Mixture:
    """The parts of samples n = 1, 2, ...; pure integer arithmetic, any n."""

    def __init__(
        self, begin: Sequence[Fraction], end: Sequence[Fraction], samples: int = 0
    ) -> None:
        """Takes begin, end: shares that add up to 1; samples: over which they change."""
        # Fractions, because floats such as 0.7 and 0.2 and 0.1 need not add up to 1.
        assert sum(begin) == sum(end) == 1, (begin, end)
        last = tuple(begin) == tuple(end) or samples == 0
        self._steps = [] if last else _moving(begin, end, samples)
        first, before = 0, (0,) * len(begin)
        if self._steps:
            done = self._steps.pop()
            first, before = done.first, done.before
        self._steps.append(_Step(first, before, _period_of(end)))
        self._firsts = [step.first for step in self._steps]

    def pick(self, n: int) -> tuple[int, int]:
        """Returns the part of sample n, and the sample's number within that part, from 1."""
        step, passes, place = self._locate(n - 1)
        parts, ranks = _order(step.period)
        part = int(parts[place])
        return part, step.before[part] + passes * step.period[part] + int(ranks[place]) + 1

    def counts(self, n: int) -> tuple[int, ...]:
        """Returns how many of samples 1 ... n come from each part."""
        step, passes, place = self._locate(n)
        parts, _ = _order(step.period)
        within = np.bincount(parts[:place], minlength=len(step.period)).tolist()
        return tuple(
            before + passes * count + some
            for before, count, some in zip(step.before, step.period, within)
        )

    def _locate(self, index: int) -> tuple[_Step, int, int]:
        # At most MOST_STEPS entries, however far the run is.
        step = self._steps[bisect_right(self._firsts, index) - 1]
        return step, *divmod(index - step.first, sum(step.period))


def _period_of(shares: Sequence[Fraction]) -> tuple[int, ...]:
    period = lcm(*(share.denominator for share in shares))
    return tuple(int(share * period) for share in shares)


def _moving(begin: Sequence[Fraction], end: Sequence[Fraction], samples: int) -> list[_Step]:
    """Returns the steps in which shares move, and one more with the counts before the end."""
    steps = max(1, min(MOST_STEPS, isqrt(samples)))
    length = max(1, min(_LONGEST_PERIOD, samples // steps))
    passes = max(1, samples // (steps * length))
    counts = [0] * len(begin)
    found = []
    for i in range(steps):
        done = (i + 1) * passes * length
        due = [
            (a * done + (b - a) * done * done / (2 * samples) - count) / passes
            for a, b, count in zip(begin, end, counts)
        ]
        # `due` is what the line's integral lacks, so that rounding errors do not add up.
        period = _rounded(due, length)
        found.append(_Step(i * passes * length, tuple(counts), period))
        counts = [count + passes * some for count, some in zip(counts, period)]
    found.append(_Step(steps * passes * length, tuple(counts), ()))
    return found


def _rounded(due: Sequence[Fraction], total: int) -> tuple[int, ...]:
    """Returns whole numbers from 0 on that add up to `total`, as near to `due` as may be."""
    numbers = [max(0, floor(value)) for value in due]
    while sum(numbers) != total:
        change = 1 if sum(numbers) < total else -1
        open_ = [i for i, number in enumerate(numbers) if number + change >= 0]
        # The part that rounding has wronged most gets the change.
        chosen = max(open_, key=lambda i: change * (due[i] - numbers[i]))
        numbers[chosen] += change
    return tuple(numbers)


@lru_cache(maxsize=8)
def _order(period: tuple[int, ...]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Returns [P] part of every sample of a period, and the part's earlier picks in it."""
    length = sum(period)
    parts, ranks = np.zeros(length, np.int32), np.zeros(length, np.int32)
    # (first sample at which it may be picked, part) and (last one, part)
    waiting = [(1, part) for part, count in enumerate(period) if count]
    possible: list[tuple[int, int]] = []
    picked = [0] * len(period)
    heapq.heapify(waiting)
    for n in range(1, length + 1):
        # A pick becomes possible at its release, and is due at its deadline.
        while waiting and waiting[0][0] <= n:
            _, part = heapq.heappop(waiting)
            heapq.heappush(possible, (-(-(picked[part] + 1) * length // period[part]), part))
        due, part = heapq.heappop(possible)
        assert n <= due, "earliest deadline first meets all deadlines"
        parts[n - 1], ranks[n - 1] = part, picked[part]
        picked[part] += 1
        if picked[part] < period[part]:
            release = picked[part] * length // period[part] + 1
            heapq.heappush(waiting, (max(release, n + 1), part))
    return parts, ranks
