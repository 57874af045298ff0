"""Strikes a job again and again, waits each time until it trains on, and notes what that cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.disturbance.faults import KINDS, Struck
from benchmarks.disturbance.scene import Scene

# The longest that a job may take to train on before it is said to need a person.
PATIENCE_SECONDS = 300.0
_LOOK_SECONDS = 0.05
# A fault that ends nothing is over when so many steps were made after it.
_STEPS_AFTER = 2


class Outcome(NamedTuple):
    """What a fault has cost.

    at: seconds since the job began. state: steps of the newest good state when it had struck.
    resumed: steps from where the job went on, None: it never stopped. lost: steps done again.
    seconds: until it trained on. fault: what is wrong with that; "" nothing.
    """

    kind: str
    at: float
    state: int
    resumed: int | None
    lost: int
    seconds: float
    fault: str = ""


class Injector:
    """Strikes the job of a scene."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._began = time.monotonic()
        self._mended_at = self._struck_life = 0

    def wait_for(self, is_so: Callable[[], bool]) -> str:
        """Tends the job until something is so; returns "", or why it will not be."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not is_so():
            if self._scene.job.tend():
                return "" if is_so() else "the run finished before it was struck"
            if time.monotonic() > deadline:
                return f"needs a person: no progress in {PATIENCE_SECONDS:g} s"
            time.sleep(_LOOK_SECONDS)
        return ""

    def finish(self) -> str:
        """Tends the job until its end; returns "", or why it will not come."""
        deadline, steps = time.monotonic() + PATIENCE_SECONDS, -1
        while not self._scene.job.tend():
            if (now := self._scene.steps_done()) != steps:
                deadline, steps = time.monotonic() + PATIENCE_SECONDS, now
            if time.monotonic() > deadline:
                return f"needs a person: no progress in {PATIENCE_SECONDS:g} s"
            time.sleep(_LOOK_SECONDS)
        return ""

    def strike(self, kind: str, after_steps: int) -> Outcome:
        """Strikes once the job has made so many steps more, and waits until it trains on."""
        scene = self._scene
        target = scene.steps_done() + after_steps
        fault = self.wait_for(lambda: scene.steps_done() >= target)
        at = time.monotonic() - self._began
        if fault:
            return Outcome(kind, at, 0, None, 0, 0.0, fault)
        self._struck_life = life = max(scene.starts(), default=0)
        lost = scene.steps_lost()
        struck = KINDS[kind].strike(scene)
        state = scene.newest_good_state()
        fault = self._mend(struck) or self.wait_for(lambda: self._trains_on(struck))
        seconds = time.monotonic() - self._began - at
        later = [steps for number, (steps, _) in scene.starts().items() if number > life]
        resumed = min(later, default=None)
        if resumed is not None and resumed < state:
            fault = fault or f"resumed at step {resumed} although the state of {state} was good"
        return Outcome(kind, at, state, resumed, scene.steps_lost() - lost, seconds, fault)

    def _mend(self, struck: Struck) -> str:
        if struck.mend is None:
            return ""
        due = time.monotonic() + struck.seconds
        fault = self.wait_for(lambda: time.monotonic() >= due)
        struck.mend()
        self._mended_at = self._scene.steps_done()
        return fault

    def _trains_on(self, struck: Struck) -> bool:
        """Tells whether the job has made steps after a fault: in a new life, where one is due."""
        starts = self._scene.starts()
        newest = max(starts, default=0)
        if newest > self._struck_life:
            resumed, is_stepping = starts[newest]
            return is_stepping and self._scene.steps_done() > resumed
        return self._scene.steps_done() >= self._mended_at + _STEPS_AFTER and not struck.restarts
