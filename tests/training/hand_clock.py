"""A clock that somebody moves on."""

from __future__ import annotations


class Hand:
    """Seconds, as `time.perf_counter` tells them."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds
