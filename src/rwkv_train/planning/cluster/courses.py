"""A planned run, simulated again and again: how it goes on average, and how it may go."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rwkv_train.goodput import PARTS, goodput
from rwkv_train.planning.cluster.failure_simulation import Scenario, Simulated, simulate
from rwkv_train.planning.cluster.goodput_formula import Interval
from rwkv_train.planning.cluster.life_cycle import LifeCycle
from rwkv_train.planning.cluster.node_pool import NodePool, RandomFailures

# Failures that are simulated in all, by runs of which each lasts as long as it would, but not
# longer than those failures take; where there are none, so many seconds.
_SIMULATED_FAILURES, _SIMULATED_SECONDS, _MOST_RUNS = 1000, 30 * 86400.0, 100
# Times the undisturbed length after which a simulated run is given up.
_PATIENCE = 20


@dataclass(frozen=True)
class Courses:
    """Runs of one scenario whose machines failed at other times."""

    runs: tuple[Simulated, ...]

    @property
    def spent(self) -> dict[str, float]:
        """Seconds by part of an average run."""
        return {part: self._mean([run.spent[part] for run in self.runs]) for part in PARTS}

    @property
    def goodput(self) -> float:
        """The goodput of all runs together."""
        return goodput(self.spent) or 0.0

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest goodput."""
        found = [run.goodput for run in self.runs]
        return min(found), max(found)

    def average(self, name: str) -> float:
        """Returns the mean of a count, such as `failures` or `steps`."""
        return self._mean([getattr(run, name) for run in self.runs])

    def _mean(self, values: list[float]) -> float:
        return sum(values) / len(self.runs)


class CourseSimulation:
    """A run whose interval between saves is open.

    mttf: seconds of a machine; seed: of the first run's failures; steps: of the whole run; None: it
    has no end.
    """

    def __init__(
        self, cycle: LifeCycle, pool: NodePool, mttf: float, seed: int, steps: int | None
    ) -> None:
        self._cycle, self._pool, self._mttf, self._seed = cycle, pool, mttf, seed
        self._steps = math.inf if steps is None else steps

    def at(self, interval: Interval) -> Courses:
        """Returns how it goes at an interval: again and again, until many failures were seen."""
        cycle, steps = self._cycle, self._simulated_steps()
        most = _PATIENCE * steps * cycle.step
        scenario = Scenario(cycle, self._pool, steps, interval.steps, most)
        runs: list[Simulated] = []
        failures = 0
        for seed in range(self._seed, self._seed + _MOST_RUNS):
            runs.append(simulate(scenario, RandomFailures(self._mttf, seed)))
            failures += runs[-1].failures
            if failures >= _SIMULATED_FAILURES or math.isinf(self._mttf):
                break
        return Courses(tuple(runs))

    def _simulated_steps(self) -> int:
        cycle = self._cycle
        seconds = _SIMULATED_FAILURES * cycle.between_failures
        if math.isinf(seconds):
            seconds = _SIMULATED_SECONDS
        return max(1, math.ceil(min(self._steps, seconds / cycle.step)))
