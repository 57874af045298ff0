"""Shares out the wall time of a run: every moment has one purpose, so that all shares add up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, NamedTuple

Purpose = Literal["training", "data", "communication", "save", "validation", "reload"]


class Spent(NamedTuple):
    """Seconds of an interval, and those of each purpose in it; the rest is training."""

    seconds: float = 0.0
    data: float = 0.0
    communication: float = 0.0
    save: float = 0.0
    validation: float = 0.0

    def share(self, purpose: Purpose) -> float:
        """Returns the part of the interval that went into a purpose, 0 to 1."""
        spent = float(getattr(self, purpose))
        return spent / self.seconds if self.seconds > 0 else 0.0


class RunClock:
    """Adds up what the main thread's time goes into; reads a clock and nothing else.

    data: the loop waits for the loader. communication: it waits for other ranks within a step.
    save: training pauses for a save. validation: for held-out text, samples and tasks. reload: the
    state is read, before the first step.
    now: seconds. label: opens a range of a profiler around a purpose, none by default.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._purpose: Purpose = "training"
        self.label: Callable[[str], AbstractContextManager[object]] = no_label
        self.start()

    def start(self) -> None:
        """Forgets what was counted; an interval begins."""
        self._spent: dict[Purpose, float] = {}
        self._before: dict[Purpose, float] = {}
        self._began = self._since = self._now()

    def switch(self, purpose: Purpose) -> Purpose:
        """Counts for `purpose` from here on; returns what the time before was counted for."""
        now, before = self._now(), self._purpose
        self._spent[before] = self._spent.get(before, 0.0) + now - self._since
        self._since, self._purpose = now, purpose
        return before

    def wait_for_ranks(self) -> Purpose:
        """Counts for communication from here on, as `switch`: but in a pause for the pause.

        The pause would be shorter without it, the steps would not.
        """
        return self.switch("communication" if self._purpose == "training" else self._purpose)

    @contextmanager
    def spending(self, purpose: Purpose) -> Iterator[None]:
        """Counts what is done inside for `purpose`; inside of another purpose for the inner one."""
        before = self.switch(purpose)
        try:
            with self.label(purpose):
                yield
        finally:
            self.switch(before)

    @contextmanager
    def waiting_for_ranks(self) -> Iterator[None]:
        """Counts what is done inside as `wait_for_ranks` does."""
        before = self.wait_for_ranks()
        try:
            yield
        finally:
            self.switch(before)

    def total(self, purpose: Purpose) -> float:
        """Returns the seconds that a purpose has taken since `start`, until it was last left."""
        return self._before.get(purpose, 0.0) + self._spent.get(purpose, 0.0)

    def take(self) -> Spent:
        """Returns the interval since `start` or the last `take`, and begins the next."""
        self.switch(self._purpose)
        spent = {name: self._spent.get(name, 0.0) for name in Spent._fields[1:]}  # type: ignore[call-overload]
        found = Spent(self._since - self._began, **spent)
        self._before = {name: self.total(name) for name in self._before | self._spent}
        self._spent, self._began = {}, self._since
        return found


def no_label(purpose: str) -> AbstractContextManager[None]:
    """Labels nothing."""
    return nullcontext()
