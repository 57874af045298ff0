"""The data set each sample comes from: exact proportions at every point of a run, without replay.

Constant shares are served by a `ShareSchedule`. Shares that change, linearly over N samples, do so
in up to 1024 steps: within each the share is constant, with a period of its own, and the counts at
the end of a step follow the integral of the line. Counts of earlier picks come from the table of
steps, so that sample n needs no replay.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from math import isqrt, lcm
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rwkv_train.data.sampling.share_schedules import ShareSchedule, ShareTable, schedule_of

MOST_STEPS = 1024
# Longest period of a step while shares change: a schedule lists every sample of it.
_LONGEST_PERIOD = 4096
# Schedules of steps that are kept: the loader's workers are a few samples apart at most.
_STEPS_KEPT = 4


class _Steps(NamedTuple):
    """Steps in which shares move, `samples` samples each.

    periods: [steps, parts] picks in each step's period.  before: [steps + 1, parts] picks in front
    of each step, and of what follows the last.
    """

    samples: int
    periods: npt.NDArray[np.int32]
    before: npt.NDArray[np.int64]


class Mixture:
    """The parts of samples n = 1, 2, ...; pure integer arithmetic, any n."""

    def __init__(
        self, begin: Sequence[Fraction], end: Sequence[Fraction], samples: int = 0
    ) -> None:
        """Takes begin, end: shares that add up to 1; samples: over which they change."""
        # Fractions, because floats such as 0.7 and 0.2 and 0.1 need not add up to 1.
        assert sum(begin) == sum(end) == 1, (begin, end)
        changing = tuple(begin) != tuple(end) and samples > 0
        self._steps = _moving(tuple(begin), tuple(end), samples) if changing else None
        # The first sample, from 0, at which the shares have come to their end.
        self._settled_at = 0
        self._before = [0] * len(end)
        if self._steps is not None:
            self._settled_at = self._steps.samples * len(self._steps.periods)
            self._before = self._steps.before[-1].tolist()
        self._settled = schedule_of(_period_of(end))
        self._schedules: dict[int, ShareSchedule] = {}

    def pick(self, n: int) -> tuple[int, int]:
        """Returns the part of sample n, and the sample's number within that part, from 1."""
        if n > self._settled_at or self._steps is None:
            part, number = self._settled.pick(n - self._settled_at)
            return part, self._before[part] + number
        step, index = divmod(n - 1, self._steps.samples)
        part, number = self._schedule(step).pick(index + 1)
        return part, int(self._steps.before[step, part]) + number

    def counts(self, n: int) -> tuple[int, ...]:
        """Returns how many of samples 1 ... n come from each part."""
        if n >= self._settled_at or self._steps is None:
            before, some = self._before, self._settled.counts(n - self._settled_at)
        else:
            step, index = divmod(n, self._steps.samples)
            before = self._steps.before[step].tolist()
            some = self._schedule(step).counts(index)
        return tuple(a + b for a, b in zip(before, some))

    def __getstate__(self) -> dict[str, Any]:
        # A worker of a loader makes the few that it needs.
        return {**self.__dict__, "_schedules": {}}

    def _schedule(self, step: int) -> ShareSchedule:
        found = self._schedules.get(step)
        if found is None:
            assert self._steps is not None, "a mixture without steps has one schedule"
            if len(self._schedules) >= _STEPS_KEPT:
                # Dicts keep the order of insertion: the oldest one goes.
                self._schedules.pop(next(iter(self._schedules)), None)
            found = self._schedules[step] = ShareTable(self._steps.periods[step].tolist())
        return found


def _period_of(shares: Sequence[Fraction]) -> list[int]:
    period = lcm(*(share.denominator for share in shares))
    return [int(share * period) for share in shares]


@lru_cache(maxsize=2)
def _moving(begin: tuple[Fraction, ...], end: tuple[Fraction, ...], samples: int) -> _Steps:
    """Returns the steps in which shares move."""
    steps = max(1, min(MOST_STEPS, isqrt(samples)))
    length = max(1, min(_LONGEST_PERIOD, samples // steps))
    passes = max(1, samples // (steps * length))
    # In whole numbers over one denominator: fractions of a thousand parts would take minutes.
    shares = lcm(*(share.denominator for share in (*begin, *end)))
    first = [int(share * shares) for share in begin]
    change = [int(share * shares) - a for share, a in zip(end, first)]
    counts = [0] * len(begin)
    periods, before = [], [counts]
    for i in range(steps):
        done = (i + 1) * passes * length
        # What the line's integral at the end of the step lacks, so that rounding errors do not add
        # up: first done + change done^2 / (2 samples) - counts, over `passes` periods.
        unit, square, whole = 2 * samples * done, done * done, 2 * samples * shares
        due = [a * unit + b * square - count * whole for a, b, count in zip(first, change, counts)]
        period = _rounded(due, whole * passes, length)
        counts = [count + passes * some for count, some in zip(counts, period)]
        periods.append(period)
        before.append(counts)
    return _Steps(passes * length, np.array(periods, np.int32), np.array(before, np.int64))


def _rounded(due: Sequence[int], denominator: int, total: int) -> list[int]:
    """Returns whole numbers from 0 on that add up to `total`, as near to due / denominator.

    One by one, the part that rounding has wronged most gets the next change.
    """
    numbers = [max(0, value // denominator) for value in due]
    lacking = total - sum(numbers)
    change = 1 if lacking > 0 else -1
    wronged = [
        (-change * (value - number * denominator), i)
        for i, (value, number) in enumerate(zip(due, numbers))
        if number + change >= 0
    ]
    heapq.heapify(wronged)
    for _ in range(abs(lacking)):
        key, i = heapq.heappop(wronged)
        numbers[i] += change
        if numbers[i] + change >= 0:
            heapq.heappush(wronged, (key + denominator, i))
    return numbers
