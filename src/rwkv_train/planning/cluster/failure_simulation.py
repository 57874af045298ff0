"""A run on failing machines, event by event: what its wall time goes into.

No clock and no threads: time is a whole number of ns that moves from event to event, so that the
parts add up to the wall time exactly. Between saves steps are counted at once.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

from rwkv_train.goodput import PARTS, goodput
from rwkv_train.planning.cluster.life_cycle import LifeCycle
from rwkv_train.planning.cluster.node_pool import Failures, NodePool

_NS = 1_000_000_000
# Parts that steps, and what is between them, take; lost where they are done again.
_STEPPING = ("training", "data", "validation", "save")


@dataclass(frozen=True)
class Scenario:
    """A run that is simulated.

    steps: until it is done; save_every: steps between saves.  most_seconds: after which it is given
    up, as a run without progress must be; None: never.
    """

    cycle: LifeCycle
    pool: NodePool
    steps: int
    save_every: int
    most_seconds: float | None = None


@dataclass(frozen=True)
class Simulated:
    """The course of a run.

    spent: seconds of the wall time by part, as `rwkv_train.goodput` names them.  steps: kept.
    failures: of machines while the run computed or started.  steps_lost: that were done again;
    restarts: starts after the first.  finished: nothing is left.
    """

    spent: Mapping[str, float]
    seconds: float
    steps: int
    failures: int
    steps_lost: int
    restarts: int
    finished: bool

    @property
    def goodput(self) -> float:
        """The share of the wall time in which steps were made that the run kept."""
        return goodput(self.spent) or 0.0


class _State(NamedTuple):
    """A state on disk: its step, and the ns that steps had taken by part when it was copied."""

    step: int
    spent: dict[str, int]


class _InterruptionError(Exception):
    """A machine has failed, or the simulation's time is over."""


def simulate(scenario: Scenario, failures: Failures) -> Simulated:
    """Returns how a run goes whose machines fail at these times; the same for the same times."""
    return _Run(scenario, failures).to_the_end()


class _Run:
    """A run's state; times in ns since its start."""

    def __init__(self, scenario: Scenario, failures: Failures) -> None:
        cycle, self._scenario, self._failures = scenario.cycle, scenario, failures
        self._cycle: dict[str, int] = {
            field.name: round(_NS * getattr(cycle, field.name))
            for field in fields(cycle)
            if field.name != "between_failures"
        }
        most = scenario.most_seconds
        self._most = None if most is None else round(_NS * most)
        self._spent = dict.fromkeys(PARTS, 0)
        self._now = self._failed = self._lost = self._starts = 0
        self._step = 0
        # Those that are complete, of which the first is the beginning; the one that is being
        # written, with the time when it is complete.
        self._states = [self._state()]
        self._writing: tuple[_State, int] | None = None
        # When broken machines come back.
        self._broken: list[int] = []
        self._working = scenario.pool.count
        self._next_failure = self._draw()

    def to_the_end(self) -> Simulated:
        detected = True
        while self._durable < self._scenario.steps and not self._is_over():
            try:
                self._start(detected)
                detected = True
                while self._train():
                    # Machines are back: the run has saved and starts anew, with them.
                    self._start(detected)
            except _InterruptionError:
                self._fall_back()
                detected = False
        spent = {part: ns / _NS for part, ns in self._spent.items()}
        finished = self._durable >= self._scenario.steps
        assert sum(self._spent.values()) == self._now, "every ns belongs to a part"
        return Simulated(
            *(
                spent,
                self._now / _NS,
                self._durable,
                self._failed,
                self._lost,
                max(0, self._starts - 1),
            ),
            finished=finished,
        )

    @property
    def _durable(self) -> int:
        """The step of the newest state that is complete."""
        return self._states[-1].step

    def _state(self) -> _State:
        return _State(self._step, {part: self._spent[part] for part in _STEPPING})

    def _is_over(self) -> bool:
        return self._most is not None and self._now >= self._most

    def _draw(self) -> int | None:
        return self._failures.after(self._now, self._working)

    def _spend(self, part: str, ns: int) -> None:
        """Lets time pass; raises _InterruptionError when it is cut short."""
        passed = min([ns, *(end - self._now for end in self._ends())])
        self._spent[part] += passed
        self._now += passed
        if passed < ns:
            raise _InterruptionError

    def _ends(self, *others: int | None) -> list[int]:
        """Returns the times that cut short what is going on: a failure, the end, and others."""
        return [end for end in (self._next_failure, self._most, *others) if end is not None]

    def _start(self, detected: bool) -> None:
        """Waits for enough machines and starts the run on them; the first start reads no state."""
        if not detected:
            # The others wait, in a step that comes to nothing.
            self._spend("broken", self._cycle["detect"])
        while (working := self._scenario.pool.working(self._still_broken())) is None:
            self._spend("down", self._broken[0] - self._now)
        if working != self._working:
            self._working = working
            self._next_failure = self._draw()
        self._spend("restart", self._cycle["restart"])
        if self._durable:
            self._spend("reload", self._cycle["reload"])
        self._starts += 1
        self._step = self._durable

    def _still_broken(self) -> int:
        while self._broken and self._broken[0] <= self._now:
            heapq.heappop(self._broken)
        return len(self._broken)

    def _train(self) -> bool:
        """Trains to the end; returns whether it left before, to start anew with more machines."""
        pool, every = self._scenario.pool, self._scenario.save_every
        whole = self._step_ns()
        while self._step < self._scenario.steps:
            self._skip(whole)
            left = min(every - self._step % every, self._scenario.steps - self._step)
            more = self._more_machines_at()
            if more is not None:
                left = min(left, max(1, -(-(more - self._now) // whole)))
            self._steps(left, whole)
            at_the_end = self._step == self._scenario.steps
            grows = (pool.working(self._still_broken()) or 0) > self._working
            if self._step % every == 0 or at_the_end or grows:
                self._save(waits=at_the_end or grows)
            if grows and not at_the_end:
                return True
        return False

    def _skip(self, whole: int) -> None:
        """Lets the saves before the next event pass at once, as they would one by one."""
        cycle, every = self._cycle, self._scenario.save_every
        if self._writing is None or self._writing[0].step != self._step:
            return
        work = every * whole
        pause = cycle["save_pause"] + max(0, cycle["save_write"] - work)
        most = [(end - self._now) // (work + pause) for end in self._ends(self._more_machines_at())]
        count = min([(self._scenario.steps - self._step) // every, *most]) - 1
        if count < 1:
            return
        for saves in (count - 1, 1):
            self._add_work(saves * every, whole)
            self._spent["save"] += saves * pause
            self._now += saves * (work + pause)
            self._step += saves * every
            self._states.append(self._state())
        # The one before it is complete, or this one would have waited; this one is being written.
        self._writing = (self._states.pop(), self._now + cycle["save_write"])

    def _add_work(self, steps: int, whole: int) -> None:
        """Counts steps among the parts, without letting time pass."""
        others = {part: steps * self._cycle[part] for part in ("data", "validation")}
        for part, ns in {**others, "training": steps * whole - sum(others.values())}.items():
            self._spent[part] += ns

    def _step_ns(self) -> int:
        """Returns the ns of a step; fewer machines compute for longer."""
        pool, cycle = self._scenario.pool, self._cycle
        computed = cycle["step"] * pool.count // self._working
        return computed + cycle["data"] + cycle["validation"]

    def _more_machines_at(self) -> int | None:
        """Returns when the next broken machine is back that the run would start anew for."""
        for fewer, when in enumerate(sorted(self._broken), 1):
            working = self._scenario.pool.working(len(self._broken) - fewer)
            if working is not None and working > self._working:
                return when
        return None

    def _steps(self, count: int, whole: int) -> None:
        """Makes steps; of those that a failure cuts off, the whole ones are made."""
        began = self._now
        try:
            self._spend("training", count * whole)
            made = count
        except _InterruptionError:
            made = (self._now - began) // whole
            # The part of a step that was cut off.
            self._move("training", "broken", self._now - began - made * whole)
            raise
        finally:
            self._step += made
            # All of it was counted as training.
            self._spent["training"] -= made * whole
            self._add_work(made, whole)

    def _move(self, source: str, target: str, ns: int) -> None:
        self._spent[source] -= ns
        self._spent[target] += ns

    def _save(self, *, waits: bool) -> None:
        """Copies the state, when the one before it is complete; waits: until it is written too."""
        if self._writing is not None:
            self._pause(max(0, self._writing[1] - self._now))
            self._complete()
        self._pause(self._cycle["save_pause"])
        self._writing = (self._state(), self._now + self._cycle["save_write"])
        if waits:
            self._pause(self._cycle["save_write"])
            self._complete()
            # The wait was for this state, and nothing is done again because of it.
            self._states[-1] = self._state()

    def _pause(self, ns: int) -> None:
        """Waits for a save; a failure in it cuts off the step that it is a part of."""
        before = self._spent["save"]
        try:
            self._spend("save", ns)
        except _InterruptionError:
            self._move("save", "broken", self._spent["save"] - before)
            raise

    def _complete(self) -> None:
        """Counts what is being written as complete, if its time has come."""
        if self._writing is not None and self._writing[1] <= self._now:
            self._states.append(self._writing[0])
            self._writing = None

    def _fall_back(self) -> None:
        """Gives up what was not complete, and the machine that has failed."""
        self._complete()
        self._writing = None
        if self._failures.damages(self._now) and self._durable:
            self._states.pop()
        newest = self._states[-1]
        self._lost += self._step - newest.step
        for part, ns in newest.spent.items():
            self._move(part, "lost", self._spent[part] - ns)
        self._step = newest.step
        if self._is_over():
            return
        self._failed += 1
        pool = self._scenario.pool
        if pool.repair:
            heapq.heappush(self._broken, self._now + round(_NS * pool.repair))
        self._next_failure = self._draw()
