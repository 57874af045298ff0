"""Simulates the run that the fault injector has measured, and prints both with their ratio.

    python -m benchmarks.chaos --faults 40 --steps 1000 --json FILE
    python -m benchmarks.chaos_forecast FILE [--settings OTHER_FILE]

Of the file the simulation takes settings: the seconds of the first start, of a step, of a save and
of a recovery, the mean of each, the steps between saves, and for how long every life trained before
a fault ended it; a fault that damages the newest state does so. What it has to come to by itself:
the wall time, where it went, the goodput, and the steps that were done again. Faults that end no
life are part of the mean step. With --settings the seconds are those of another run, for each kind
of fault, and all that is taken of this one is when its faults came, and which. Exit status 0: wall
time and goodput are within 15 % of what was measured.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from rwkv_train.errors import DataError
from rwkv_train.goodput import FORWARD, PARTS, no_seconds
from rwkv_train.planning.cluster.failure_simulation import Scenario, Simulated, simulate
from rwkv_train.planning.cluster.life_cycle import LifeCycle
from rwkv_train.planning.cluster.node_pool import GivenFailures, NodePool
from rwkv_train.planning.text_table import text_table

WITHIN = 0.15
# Parts that the injector's clock cannot tell from one another: nobody trains, or in vain.
_RECOVERY = ("broken", "restart", "reload", "down", "ending", "untold")
# Faults after which the newest state cannot be read.
_DAMAGING = ("corrupt_state", "truncate_state", "delete_state")
# Faults that end no life, and that all ranks wait for; told with so many steps after them.
_HOLDING, _STEPS_AFTER = ("pause_rank", "drop_link"), 2
_JUDGED = ("wall time", "goodput")


class Line(NamedTuple):
    """A quantity; times in seconds."""

    name: str
    measured: float
    simulated: float

    @property
    def ratio(self) -> float:
        """Simulated over measured; 1 where both are nothing."""
        if self.measured:
            return self.simulated / self.measured
        return 1.0 if self.simulated == 0 else float("inf")


def read_figures(path: Path) -> dict[str, Any]:
    """Returns what benchmarks.chaos has written; raises DataError for another file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}; give a file of benchmarks.chaos --json") from error
    needed = {"steps", "save_every_steps", "step_seconds", "save_pause_seconds", "faults"}
    missing = (needed | {"seconds", "lost_steps", "first_start_seconds"}) - set(found)
    if missing:
        raise DataError(
            f"{path} lacks {', '.join(sorted(missing))}; give a file of benchmarks.chaos --json"
        )
    return dict(found)


def cycle_of(figures: dict[str, Any], settings: dict[str, Any]) -> LifeCycle:
    """Returns the seconds of a run's life, means of those of the settings, for the run's faults."""
    seconds, steps = settings["seconds"], settings["steps"]
    data, validation = seconds.get("data", 0.0) / steps, seconds.get("validation", 0.0) / steps
    step = settings["step_seconds"] + _held(figures, settings) - _held(settings, settings)
    # A life counts as going on when it has made a step.
    recovery = _mean_seconds(_ended(figures), settings) - settings["step_seconds"]
    return LifeCycle(
        step=step - data,
        save_pause=settings["save_pause_seconds"],
        save_write=settings.get("save_write_seconds", 0.0),
        detect=0.0,
        restart=max(0.0, recovery),
        reload=0.0,
        between_failures=float("inf"),
        data=data,
        validation=validation,
    )


def _held(figures: dict[str, Any], settings: dict[str, Any]) -> float:
    """Returns the seconds of a run's mean step for which faults that end no life held it up."""
    faults = [fault for fault in figures["faults"] if fault["kind"] in _HOLDING]
    after = _STEPS_AFTER * settings["step_seconds"]
    held = max(0.0, _mean_seconds(faults, settings) - after)
    return len(faults) * held / figures["steps"]


def _mean_seconds(faults: Sequence[dict[str, Any]], settings: dict[str, Any]) -> float:
    """Returns the mean seconds of faults of these kinds in the settings' run; 0 without any."""
    told: dict[str, list[float]] = {}
    for fault in settings["faults"]:
        told.setdefault(fault["kind"], []).append(fault["seconds"])
    every = [seconds for own in told.values() for seconds in own]
    # A kind that it has not seen is as long as any.
    found = [fmean(told.get(fault["kind"], every)) for fault in faults if every]
    return fmean(found) if found else 0.0


def lives_of(figures: dict[str, Any]) -> list[float]:
    """Returns for how many seconds each life made steps before a fault ended it."""
    began, lives = figures["first_start_seconds"], []
    for fault in _ended(figures):
        lives.append(max(0.0, fault["at"] - began))
        began = fault["at"] + fault["seconds"] - figures["step_seconds"]
    return lives


def simulated_run(figures: dict[str, Any], cycle: LifeCycle) -> Simulated:
    """Returns the run as it is simulated, its first start as long as a recovery."""
    lives = [cycle.restart + life for life in lives_of(figures)]
    failures = list(itertools.accumulate(lives))
    kinds = [fault["kind"] for fault in _ended(figures)]
    damaging = [at for at, kind in zip(failures, kinds) if kind in _DAMAGING]
    scenario = Scenario(cycle, NodePool(1), figures["steps"], figures["save_every_steps"])
    return simulate(scenario, GivenFailures(failures, damaging))


def comparison(figures: dict[str, Any], settings: dict[str, Any]) -> list[Line]:
    """Returns what was measured beside what is simulated.

    figures: of the run; settings: figures too, of the run that the seconds are taken of.
    """
    cycle = cycle_of(figures, settings)
    found = simulated_run(figures, cycle)
    measured = {**no_seconds(), **figures["seconds"]}
    simulated = dict(found.spent)
    # The first start finds an empty folder, and nobody has to notice anything.
    simulated["restart"] += settings["first_start_seconds"] - cycle.restart
    lines = [
        Line("wall time", sum(measured.values()), sum(simulated.values())),
        Line("steps that are kept", _sum(measured, FORWARD), _sum(simulated, FORWARD)),
        Line("recoveries", _sum(measured, _RECOVERY), _sum(simulated, _RECOVERY)),
    ]
    others = [part for part in PARTS if part not in (*FORWARD, *_RECOVERY)]
    lines += [Line(part, measured[part], simulated[part]) for part in others]
    shares = (_sum(parts, FORWARD) / sum(parts.values()) for parts in (measured, simulated))
    lost = Line("steps done again", figures["lost_steps"], found.steps_lost)
    return [*lines, Line("goodput", *shares), lost]


def table(lines: Iterable[Line]) -> list[str]:
    """Returns the comparison as lines."""
    rows = [
        (line.name, f"{line.measured:,.3f}", f"{line.simulated:,.3f}", f"{line.ratio:.3f}")
        for line in lines
    ]
    return text_table(("seconds, or as named", "measured", "simulated", "ratio"), rows, "lrrr")


def too_far(lines: Iterable[Line]) -> list[str]:
    """Returns the quantities that are simulated too far from what was measured."""
    return [line.name for line in lines if line.name in _JUDGED and abs(line.ratio - 1) > WITHIN]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when the simulation is near what was measured, 1 when not, 2 for a wrong file."""
    parser = argparse.ArgumentParser(prog="benchmarks.chaos_forecast", description=__doc__)
    parser.add_argument("file", type=Path, help="what benchmarks.chaos --json has written")
    parser.add_argument("--settings", type=Path, help="one of another run; default: the same")
    options = parser.parse_args(argv)
    try:
        figures = read_figures(options.file)
        lines = comparison(figures, read_figures(options.settings or options.file))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(table(lines)))
    far = too_far(lines)
    if far:
        print(f"not within {WITHIN:.0%}: {', '.join(far)}")
    return 1 if far else 0


def _ended(figures: dict[str, Any]) -> list[dict[str, Any]]:
    return [fault for fault in figures["faults"] if fault["resumed"] is not None]


def _sum(seconds: dict[str, float], parts: Sequence[str]) -> float:
    return sum(seconds[part] for part in parts)


if __name__ == "__main__":
    sys.exit(main())
