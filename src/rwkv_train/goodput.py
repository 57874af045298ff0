"""Shares out the wall time of a run's whole life: every second of all its starts, counted once.

Arithmetic alone. Training, its report, the plan of a cluster and the fault injector have these
names in common, so that what one foretells another can measure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# part -> words. Of a step: the first five. Between steps: the others.
PARTS = {
    "training": "training",
    "communication": "waiting for other ranks",
    "data": "waiting for data",
    "save": "saving",
    "validation": "validation",
    "lost": "lost and done again",
    "broken": "in steps that broke off",
    "restart": "starting",
    "reload": "reading the state",
    "ending": "ending",
    "down": "nobody ran",
    "untold": "not told: its records are gone",
}
# What moves the model on: a step needs what other ranks have found as much as its own arithmetic.
FORWARD = ("training", "communication")
_PAUSES = ("communication", "data", "save", "validation")
# A part below it is no news.
_WORTH_TELLING = 0.001


def no_seconds() -> dict[str, float]:
    """Returns 0 for every part."""
    return dict.fromkeys(PARTS, 0.0)


def step_seconds(record: Mapping[str, Any]) -> dict[str, float]:
    """Returns what a step's seconds went into, by part, which add up to them.

    record: of metrics.jsonl, with `seconds` and the shares of pauses in it; {} without the seconds.
    """
    seconds = amount_in(record, "seconds")
    if seconds <= 0:
        return {}
    found = {name: seconds * amount_in(record, f"{name}_share") for name in _PAUSES}
    found["training"] = seconds - sum(found.values())
    return found


def ending_seconds(record: Mapping[str, Any]) -> dict[str, float]:
    """Returns what the seconds behind a start's last step went into; `step_seconds`' rules hold."""
    seconds = amount_in(record, "ending_seconds")
    found = {name: seconds * amount_in(record, f"{name}_share") for name in ("save", "validation")}
    return {**found, "ending": seconds - sum(found.values())}


def seconds_beside_steps(record: Mapping[str, Any]) -> dict[str, float]:
    """Returns the seconds by part of a record of times.jsonl, a start or an end of the program."""
    return {
        **ending_seconds(record),
        "restart": amount_in(record, "start_up_seconds"),
        "lost": amount_in(record, "lost_seconds"),
    }


def add_seconds(to: dict[str, float], more: Mapping[str, float]) -> None:
    """Adds seconds by part to others, in place."""
    for part, seconds in more.items():
        to[part] += seconds


def goodput(seconds: Mapping[str, float]) -> float | None:
    """Returns the share of time that moved the model forward, 0 to 1; None without any time."""
    whole = sum(seconds.values())
    return sum(seconds.get(part, 0.0) for part in FORWARD) / whole if whole > 0 else None


def goodput_line(seconds: Mapping[str, float], lives: int, lost_steps: int) -> str:
    """Returns in one line what share of a run's time was good, and where the rest of it went.

    lives: starts of the run; lost_steps: trained and done again.
    """
    whole = sum(seconds.values())
    rest = sorted(
        ((seconds.get(part, 0.0), words) for part, words in PARTS.items() if part not in FORWARD),
        reverse=True,
    )
    least = _WORTH_TELLING * whole
    told = [f"{words} {spent / whole:.1%}" for spent, words in rest if spent > least]
    share = goodput(seconds)
    return (
        f"goodput {'–' if share is None else f'{share:.1%}'} over {lives} "
        f"{'life' if lives == 1 else 'lives'} and {whole:,.1f} s"
        + (f", {lost_steps} steps lost" if lost_steps else "")
        + (f": {', '.join(told)}" if told else "")
    )


def amount_in(record: Mapping[str, Any], name: str) -> float:
    """Returns a number of a record; 0 where it holds none, or one that is no amount."""
    value = record.get(name)
    # A comparison with NaN is false.
    return float(value) if isinstance(value, int | float) and 0 <= value < float("inf") else 0.0
