"""Adds up where the time of a run's whole life went, over all of its starts."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from rwkv_train.goodput import FORWARD, PARTS, add_seconds, amount_in, goodput, no_seconds
from rwkv_train.report.page_blocks import PagePart, page_table, shown_seconds
from rwkv_train.report.run_history import PAUSES, RunHistory


def life_seconds(history: RunHistory) -> dict[str, float]:
    """Returns seconds by part, as `rwkv_train.goodput` names them; what nobody has told is 0.

    Those of steps are of the steps that the weights have.
    """
    bins, found = history.bins, no_seconds()
    # Of a file that was read in parts, the rest is like the part.
    whole = 1 / history.read_share if history.read_share else 1.0
    for name in PAUSES:
        found[name] = bins.total(f"{name}_seconds") * whole
    pauses = sum(found.values())
    found["training"] = max(0.0, bins.total("whole_seconds") * whole - pauses)
    add_seconds(found, history.beside if history.account is None else history.account.beside)
    return found


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
        [PARTS[part], shown_seconds(value), f"{value / whole:.1%}" if whole else "–"]
        for part, value in seconds.items()
        if value > 0 or part == "training"
    ]
    share = goodput(seconds)
    if share is not None and tells:
        good = sum(seconds[part] for part in FORWARD)
        rows.insert(0, ["goodput", shown_seconds(good), f"{share:.1%}"])
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
        passed = ended - began + sum(amount_in(r, "start_up_seconds") for r in first)
        rows.append([f"by the calendar, {count}", shown_seconds(passed), ""])
    return page_table("Where the time went", ["what", "time", "share"], rows, note=words)


def _seconds_of(starts: list[dict[str, Any]]) -> float | None:
    """Returns when a run began; None where that cannot be read."""
    try:
        return datetime.fromisoformat(starts[0]["time"]).timestamp()
    except (IndexError, KeyError, TypeError, ValueError):
        return None
