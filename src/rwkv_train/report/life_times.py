"""Adds up where the time of a run's whole life went, over all of its starts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from rwkv_train.report.page_blocks import PagePart, page_table, shown_seconds
from rwkv_train.report.run_history import RunHistory, number_in


def life_seconds(history: RunHistory) -> dict[str, float]:
    """Returns seconds by kind; what the run's records do not tell is 0.

    training: of the steps that the weights have; the rest is waiting, saving, validating, starting,
    ending, and steps that were lost with a process and done again.
    """
    bins = history.bins
    # Of a file that was read in parts, the rest is like the part.
    whole = 1 / history.read_share if history.read_share else 1.0
    found = {
        "training": 0.0,
        "waiting for data": bins.total("data_seconds") * whole,
        "saving": bins.total("save_seconds") * whole + history.ending["save"],
        "validation": bins.total("validation_seconds") * whole + history.ending["validation"],
        "starting": history.start_up_seconds,
        "ending": history.ending["whole"] - history.ending["save"] - history.ending["validation"],
        "lost and done again": history.lost_seconds,
    }
    pauses = sum(bins.total(f"{name}_seconds") for name in ("data", "save", "validation"))
    found["training"] = max(0.0, bins.total("whole_seconds") - pauses) * whole
    return found


def goodput(seconds: Mapping[str, float]) -> float | None:
    """Returns the share of training in the time of a run's life; None without any."""
    whole = sum(seconds.values())
    return seconds["training"] / whole if whole > 0 else None


def tells_pauses(history: RunHistory) -> bool:
    """Tells whether the records hold more than the time of the steps themselves."""
    return history.bins.knows("seconds")


def life_table(history: RunHistory, starts: list[dict[str, Any]], ended: float | None) -> PagePart:
    """Returns the table of a run's time.

    ended: seconds since the epoch at which its last record was written.
    """
    seconds = life_seconds(history)
    whole = sum(seconds.values())
    tells = tells_pauses(history)
    rows = [
        [name, shown_seconds(value), f"{value / whole:.1%}" if whole else "–"]
        for name, value in seconds.items()
        if value > 0 or name == "training"
    ]
    rows.append(["together", shown_seconds(whole), "100.0%" if whole else "–"])
    words = ""
    if not tells:
        words = (
            "This run's records hold the time of its steps alone: what was spent between them, and "
            "on starting, is not told."
        )
    elif history.read_share < 1:
        words = "Estimated from the part of the records that was read."
    began = _seconds_of(starts)
    if began is not None and ended is not None and ended > began:
        count = f"{len(starts)} start{'s' if len(starts) > 1 else ''}"
        # A start is written down when it is ready.
        first = history.events["start_up_seconds"].records[:1]
        passed = ended - began + sum(number_in(r, "start_up_seconds") for r in first)
        rows.append([f"by the calendar, {count}", shown_seconds(passed), ""])
    return page_table("Where the time went", ["what", "time", "share"], rows, note=words)


def _seconds_of(starts: list[dict[str, Any]]) -> float | None:
    """Returns when a run began; None where that cannot be read."""
    try:
        return datetime.fromisoformat(starts[0]["time"]).timestamp()
    except (IndexError, KeyError, TypeError, ValueError):
        return None
