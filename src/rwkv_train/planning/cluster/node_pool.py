"""Machines of a run: how many of them it can use, and when broken ones come back."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class NodePool:
    """Machines, and what a run does without some of them.

    count: that it wants; spares: more of them, idle; least: fewer than these wait for others.
    repair: seconds until a broken one is back.  usable: counts that the batch divides among,
    ascending, the last one `count`.
    """

    count: int
    spares: int = 0
    repair: float = 0.0
    least: int | None = None
    usable: tuple[int, ...] = ()

    def working(self, broken: int) -> int | None:
        """Returns how many machines compute while so many are broken; None: the run waits."""
        there = min(self.count, self.count + self.spares - broken)
        counts = [count for count in self.usable or (self.count,) if count <= there]
        least = self.count if self.least is None else self.least
        return counts[-1] if counts and counts[-1] >= least else None


def usable_counts(samples: int, nodes: int, cards: int, sharing: int = 1) -> tuple[int, ...]:
    """Returns the counts of machines, up to `nodes`, among which a global batch divides.

    samples: of the batch.  cards: of a machine; sharing: that read one sample together.
    """
    return tuple(
        count
        for count in range(1, nodes + 1)
        if count * cards % sharing == 0 and samples % (count * cards // sharing) == 0
    )


class Failures(Protocol):
    """Times at which machines fail."""

    def after(self, now: int, machines: int) -> int | None:
        """Returns the next failure of any of so many machines, in ns; None: no more."""
        ...

    def damages(self, now: int) -> bool:
        """Tells whether the failure at this time leaves the newest state unreadable."""
        ...


class RandomFailures:
    """Failures of machines that do not age: each after `mttf` seconds on average.

    Asked again with another number of machines it draws anew, which changes nothing on average.
    """

    def __init__(self, mttf: float, seed: int) -> None:
        self._mttf, self._random = mttf, random.Random(seed)

    def after(self, now: int, machines: int) -> int | None:
        """Returns the next failure in ns; None where machines do not fail."""
        seconds = self._random.expovariate(1.0) * self._mttf / machines
        return None if seconds == float("inf") else now + round(1e9 * seconds)

    def damages(self, now: int) -> bool:
        """Tells that no state suffers: it is on disks of others."""
        return False


class GivenFailures:
    """Failures at given seconds since the run's start; damaging: those that cost a state too."""

    def __init__(self, seconds: Sequence[float], damaging: Sequence[float] = ()) -> None:
        self._times: Iterator[int] = iter(sorted(_nanoseconds(second) for second in seconds))
        self._damaging = {_nanoseconds(second) for second in damaging}
        self._next = next(self._times, None)

    def after(self, now: int, machines: int) -> int | None:
        """Returns the next one in ns, whatever the number of machines; None: no more."""
        while self._next is not None and self._next <= now:
            self._next = next(self._times, None)
        return self._next

    def damages(self, now: int) -> bool:
        """Tells whether the failure at this time is one of the damaging ones."""
        return now in self._damaging


def _nanoseconds(seconds: float) -> int:
    return round(1e9 * seconds)
