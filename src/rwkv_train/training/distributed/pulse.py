"""The main thread of a rank: what it is doing, told to the others once a second by its watch.

Written by the main thread, read by the watch: plain values, for which Python needs no lock.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

# Before the first step, and inside of it: kernels may be compiled, workers started.
START = "start"
# Between two looks of a watch.
BEAT_SECONDS = 1.0


@dataclass(frozen=True)
class Beat:
    """One sign of life of a rank.

    step: optimizer steps done; phase: START, or a purpose of `RunClock`; still_seconds: since the
    main thread has last passed from one phase to another; moves: how often it has; is_warm: whether
    it has done a step in this start. work_seconds: of training and data in all steps of this start,
    without waits for other ranks. host, process: where it runs.
    """

    step: int
    phase: str
    still_seconds: float
    moves: int
    is_warm: bool
    steps_here: int
    work_seconds: float
    host: str
    process: int
    sent: float = field(default=0.0)

    def to_json(self) -> str:
        """Returns the beat as the store holds it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: bytes | str) -> Beat:
        """Returns the beat that `to_json` wrote."""
        return cls(**json.loads(text))


class Pulse:
    """The main thread's place, from `move` to `move`; asked for by `beat`."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._phase = START
        self._moves = 0
        self._since = now()
        self._step = self._steps_here = 0
        self._work_seconds = 0.0
        self._slow_ranks: list[str] | None = None

    def move(self, phase: str) -> None:
        """Keeps that the main thread begins something else; the listener of a `RunClock`."""
        self._phase = phase
        self._moves += 1
        self._since = self._now()

    def excuse(self, seconds: float) -> None:
        """Takes so much off the time for which the main thread stands still: it could not run."""
        self._since = min(self._now(), self._since + seconds)

    def end_step(self, step: int, work_seconds: float) -> None:
        """Keeps that `step` steps of the run are done, and the work of this start."""
        self._step, self._work_seconds = step, work_seconds
        self._steps_here += 1
        self.move(self._phase)

    def note_slow(self, lines: list[str]) -> None:
        """Keeps the news of slow ranks, a line a machine, for the main thread."""
        self._slow_ranks = lines

    def take_slow(self) -> list[str] | None:
        """Returns the news once; None: nothing has changed, []: none is slow any more."""
        lines, self._slow_ranks = self._slow_ranks, None
        return lines

    def beat(self, host: str, process: int) -> Beat:
        """Returns the sign of life of this moment."""
        now = self._now()
        return Beat(
            self._step,
            self._phase,
            now - self._since,
            self._moves,
            self._steps_here > 0,
            self._steps_here,
            self._work_seconds,
            host,
            process,
            now,
        )
