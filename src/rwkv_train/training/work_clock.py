"""Measures how much of a step's time is the model's own, from forward to the gradients' release."""

from __future__ import annotations

import time


class WorkClock:
    """Adds up the seconds between `begin` and `end`, which may be many pairs a step.

    Where the host only tells a card what to do, these are not the model's: ask it on a CPU.
    seconds: the sum.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began: float | None = None

    def begin(self) -> None:
        """Starts counting."""
        self._began = time.perf_counter()

    def end(self) -> None:
        """Counts the time since `begin`; nothing, where that was not called."""
        if self._began is not None:
            self.seconds += time.perf_counter() - self._began
            self._began = None

    def reset(self) -> None:
        """Forgets what was counted."""
        self.seconds, self._began = 0.0, None
