"""Compares a run with known-good runs of the demo: is this loss normal?

reference_curves.json is made by benchmarks/reference_curves.py. It knows the demo's configuration
on a CPU alone; of every other one it says that there is no reference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import PurePath
from typing import Any

import numpy as np

from rwkv_train.report.page_blocks import PagePart, axis, series
from rwkv_train.report.run_history import RunHistory
from rwkv_train.report.step_bins import Matrix

REFERENCE_FILE = "reference_curves.json"
# A window of losses is compared when it is complete; a verdict is that of the newest so many.
_NEWEST = 5


@dataclass(frozen=True)
class Verdict:
    """The result of a comparison.

    kind: in, above, below, early (too few steps) or none (no reference); words: for people; band:
    the series to draw and the axis it names, None without one.
    """

    kind: str
    words: str
    band: tuple[PagePart, PagePart] | None = None


@cache
def reference_curves() -> dict[str, Any]:
    """Returns what is known: settings it applies to, and a band for every version."""
    text = files("rwkv_train.report").joinpath(REFERENCE_FILE).read_text(encoding="utf-8")
    return dict(json.loads(text))


def compare_with_reference(
    settings: Mapping[str, Any], history: RunHistory, curves: Mapping[str, Any]
) -> Verdict:
    """Returns whether a run's training loss lies in the band of known-good runs.

    curves: as `reference_curves` returns them.
    """
    other = _first_other(settings, curves["applies_to"])
    if other is not None:
        return Verdict(
            "none",
            "There is no reference for this configuration: known losses are those of "
            f"./demo-training-run.sh on a CPU, and here {other}.",
        )
    found = curves["bands"].get(str(settings.get("rwkv_version")))
    if found is None:
        return Verdict("none", "There is no reference for this version of RWKV.")
    band = (_drawn(found), _middles(found["steps"], found["tokens"][-1] / found["steps"][-1]))
    means = window_means(history.bins.means("step") + 1, history.bins.means("loss"), found["steps"])
    known = np.flatnonzero(np.isfinite(means))
    if not len(known):
        words = (
            f"Too early to compare: the band of known-good runs begins at step {found['steps'][0]}."
        )
        return Verdict("early", words, band)
    return _verdict(means, known, found, band)


def _verdict(
    means: Matrix,
    known: Sequence[int] | Any,
    found: Mapping[str, Any],
    band: tuple[PagePart, PagePart],
) -> Verdict:
    newest = known[-_NEWEST:]
    low, high = np.array(found["low"]), np.array(found["high"])
    above = int((means[newest] > high[newest]).sum())
    below = int((means[newest] < low[newest]).sum())
    last = int(known[-1])
    place = (
        f"up to step {found['steps'][last]} it is {means[last]:.3f}, where known-good runs of this "
        f"configuration lie between {low[last]:.3f} and {high[last]:.3f}"
    )
    end = f"The band ends at step {found['steps'][-1]}." if last == len(low) - 1 else ""
    if 2 * above > len(newest):
        words = (
            f"The training loss lies above the band: {place}. Look at what differs: the text, the "
            "precision, skipped steps, a change of code."
        )
        return Verdict("above", f"{words} {end}".strip(), band)
    if 2 * below > len(newest):
        words = (
            f"The training loss lies below the band: {place}. Text that is more uniform does this, "
            "and so does a mistake that lets the model see what it predicts."
        )
        return Verdict("below", f"{words} {end}".strip(), band)
    words = f"The training loss lies in the band: {place}."
    return Verdict("in", f"{words} {end}".strip(), band)


def window_means(steps: Matrix, losses: Matrix, ends: Sequence[int]) -> Matrix:
    """Returns the mean loss of each window of steps; NaN where one is not complete.

    steps: [n], counted from 1; ends: last step of every window, the first of which begins at 1.
    """
    found = np.full(len(ends), np.nan)
    begin = 0
    for i, end in enumerate(ends):
        part = losses[(steps > begin) & (steps <= end)]
        # Skipped steps have no loss.
        if len(steps) and steps[-1] >= end and np.isfinite(part).any():
            found[i] = np.nanmean(part)
        begin = end
    return found


def _first_other(settings: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Returns the first thing that a configuration has otherwise, in words; None: nothing."""
    values = dict(settings)
    processes = [settings.get(name) or 1 for name in ("micro_bsz", "accumulate_grad_batches")]
    processes += [settings.get(name) or 1 for name in ("devices", "num_nodes")]
    values["global batch"] = int(np.prod(processes))
    values["data"] = PurePath(str(settings.get("data_file"))).name
    for name, value in wanted.items():
        if values.get(name) != value:
            shown = "nothing" if values.get(name) is None else values[name]
            return f"{name} is {shown}, not {'nothing' if value is None else value}"
    return None


def _middles(ends: Sequence[int], step_tokens: float) -> PagePart:
    """Returns where windows are drawn: a mean stands in the middle of its steps."""
    steps = [(begin + end - 1) // 2 for begin, end in zip([0, *ends], ends)]
    return axis(steps, [(step + 1) * step_tokens for step in steps])


def _drawn(found: Mapping[str, Any]) -> PagePart:
    return series(
        "known-good runs",
        "reference",
        found["middle"],
        low=found["low"],
        high=found["high"],
        shape="band",
        colour=2,
    )
