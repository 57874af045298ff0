"""A run on failing machines as an object of JSON, for programs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from rwkv_train.planning.cluster.cluster_plan import ClusterPlan, IntervalOutcome
from rwkv_train.planning.cluster.courses import Courses


def cluster_values(found: ClusterPlan) -> dict[str, Any]:
    """Returns a cluster's part of a plan in plain values: seconds, bytes, shares.

    What is infinite, as the time between failures that never come, is None.
    """
    return {
        "nodes": found.pool.count,
        "cards": found.plan.config.hardware.devices,
        "cycle": _finite(dataclasses.asdict(found.cycle)),
        "save": _plain(found.save),
        "pool": {name: value for name, value in _plain(found.pool).items() if name != "usable"},
        "down": found.down,
        "next_smaller": found.fewer,
        "makes_progress": found.makes_progress,
        "formula_holds": found.formula_holds,
        "own": _outcome(found, found.own),
        "best": _outcome(found, found.best),
        "near": [_outcome(found, outcome) for outcome in found.near],
        "changed": [
            {
                "name": changed.name,
                "best_steps": changed.best.steps,
                "best_goodput": changed.best.goodput,
                "own_goodput": changed.own_goodput,
            }
            for changed in found.changed
        ],
    }


def _outcome(found: ClusterPlan, outcome: IntervalOutcome | None) -> dict[str, Any] | None:
    if outcome is None:
        return None
    steps = outcome.interval.steps
    return {
        "steps": steps,
        "seconds": steps * found.cycle.whole_step,
        "shares": dict(outcome.interval.shares),
        "pace": found.pace(outcome),
        "run_seconds": found.seconds(outcome),
        "simulated": None if outcome.simulated is None else _courses(outcome.simulated),
    }


def _courses(found: Courses) -> dict[str, Any]:
    names = ("seconds", "steps", "failures", "restarts", "steps_lost", "finished")
    low, high = found.range
    return {
        "runs": len(found.runs),
        "spent": found.spent,
        "goodput": found.goodput,
        "lowest": low,
        "highest": high,
        **{name: found.average(name) for name in names},
    }


def _plain(value: Any) -> dict[str, Any]:
    return dataclasses.asdict(value)


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {name: None if math.isinf(value) else value for name, value in values.items()}
