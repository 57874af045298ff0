"""Puts together the page of one run: what is known of it, from the files of its folder."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from rwkv_train.goodput import goodput
from rwkv_train.report.curve_sections import rate_section, speed_section, task_section, time_section
from rwkv_train.report.folder_facts import RunFacts, read_facts
from rwkv_train.report.life_times import life_seconds, life_table, tells_pauses
from rwkv_train.report.loss_section import loss_section, page_axes, page_marks
from rwkv_train.report.page_blocks import PagePart, shown_count, shown_seconds, tile
from rwkv_train.report.page_file import REPORT_FILE, write_page
from rwkv_train.report.reference_band import Verdict, compare_with_reference, reference_curves
from rwkv_train.report.run_endings import Ending, fault_section, read_endings
from rwkv_train.report.run_history import RunHistory
from rwkv_train.report.run_records import METRICS_FILE
from rwkv_train.report.table_sections import (
    mishap_section,
    plan_table,
    sample_section,
    settings_section,
    start_section,
)

# Steps whose mean is called the loss of a run.
RECENT_STEPS = 50
_VERDICTS = {
    "in": "in the band",
    "above": "above the band",
    "below": "below the band",
    "early": "too early",
}


class RunPage:
    """The page of a run's folder; what was read once is not read again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._history = RunHistory(folder)
        self._facts: RunFacts | None = None
        self._seen: tuple[int, ...] = ()

    def write(self) -> Verdict:
        """Writes report.html into the folder, and returns how the run compares. Raises OSError."""
        document, verdict = self.document()
        write_page(self._folder / REPORT_FILE, document)
        return verdict

    def document(self) -> tuple[PagePart, Verdict]:
        """Returns the page's contents, and how the run compares with known ones."""
        self._history.update()
        return run_document(self.facts(), self._history)

    def facts(self) -> RunFacts:
        """Returns the folder's facts, read again when one of its files has changed."""
        seen = tuple(_written(self._folder / name) for name in _FACT_FILES)
        if self._facts is None or seen != self._seen:
            self._facts, self._seen = read_facts(self._folder), seen
        return self._facts


_FACT_FILES = ("config.yaml", "starts.jsonl", "plan.json")


def _written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0


def run_document(facts: RunFacts, history: RunHistory) -> tuple[PagePart, Verdict]:
    """Returns the contents of a run's page, and how the run compares with known ones."""
    verdict = compare_with_reference(facts.settings, history, reference_curves())
    metrics = facts.folder / METRICS_FILE
    ended = metrics.stat().st_mtime if metrics.is_file() else None
    endings = _endings(facts.folder, history)
    sections = [
        loss_section(history, verdict.band[0] if verdict.band else None, verdict.words),
        mishap_section(history),
        fault_section(endings, history.events["slow"].records),
        rate_section(history),
        speed_section(history, plan_table(facts.plan, history)),
        time_section(history, life_table(history, facts.starts, ended)),
        sample_section(history),
        task_section(history),
        settings_section(facts),
        start_section(facts),
    ]
    axes = page_axes(history)
    if verdict.band:
        axes["reference"] = verdict.band[1]
    document = {
        "title": f"{facts.name}: {facts.title}",
        "heading": facts.name,
        "subtitle": facts.title,
        "written": written_now(),
        "tiles": run_tiles(facts.settings, history, verdict),
        "axes": axes,
        "marks": page_marks(history, facts.starts, endings),
        "sections": [found for found in sections if found is not None],
    }
    return document, verdict


def _endings(folder: Path, history: RunHistory) -> list[Ending]:
    last = history.last
    return read_endings(folder, last["tokens"] / (last["step"] + 1) if last else 0.0)


def written_now() -> str:
    """Returns the time at which a page is written."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def recent_loss(history: RunHistory) -> float | None:
    """Returns the mean training loss of the newest steps; None without any."""
    losses = history.bins.means("loss")
    count = max(1, round(RECENT_STEPS * history.read_share / history.bins.size))
    found = losses[-count:]
    return float(np.nanmean(found)) if np.isfinite(found).any() else None


def run_tiles(settings: Any, history: RunHistory, verdict: Verdict) -> list[PagePart]:
    """Returns the figures at the top of a run's page."""
    loss, last = recent_loss(history), history.last
    if loss is None or last is None:
        return [tile("steps", "none yet", "metrics.jsonl holds no steps")]
    steps = min(RECENT_STEPS, history.steps)
    tiles = [tile("training loss", f"{loss:.4f}", f"mean of the last {steps} steps")]
    tiles += _validation_tile(history)
    budget = settings.get("exit_tokens")
    part = f", {last['tokens'] / budget:.0%} of the budget" if _is_positive(budget) else ""
    tiles.append(
        tile("steps", f"{last['step'] + 1:,}", f"{shown_count(last['tokens'])} tokens{part}")
    )
    tiles += _speed_tiles(history)
    seconds = life_seconds(history)
    share = goodput(seconds)
    if share is not None and tells_pauses(history):
        whole = shown_seconds(sum(seconds.values()))
        tiles.append(tile("goodput", f"{share:.1%}", f"of {whole} were training that counts"))
    skipped, back = history.events["skipped"].count, history.events["rollback"].count
    words = f"{back} return{'' if back == 1 else 's'} to an earlier state" if back else ""
    tiles.append(tile("bad steps", f"{skipped:,}", words))
    if verdict.kind in _VERDICTS:
        tiles.append(tile("known-good runs", _VERDICTS[verdict.kind], ""))
    return tiles


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and value > 0


def _validation_tile(history: RunHistory) -> list[PagePart]:
    records = history.events["val_loss"].records
    if not records:
        return []
    newest, best = records[-1], min(records, key=lambda r: float(r["val_loss"]))
    bits = newest.get("val_bits_per_byte")
    known = f"{bits:.4f} bits per byte, " if type(bits) is float else ""
    words = "the best so far" if best is newest else f"best {best['val_loss']:.4f}"
    return [tile("validation loss", f"{newest['val_loss']:.4f}", known + words)]


def _speed_tiles(history: RunHistory) -> list[PagePart]:
    bins = history.bins
    speeds = bins.means("tokens_per_second")
    tiles = []
    if np.isfinite(speeds).any():
        median = float(np.nanmedian(speeds))
        tiles.append(tile("throughput", f"{shown_count(median)}", "tokens per second, median"))
    if bins.knows("mfu"):
        value = float(np.nanmedian(bins.means("mfu")))
        tiles.append(tile("MFU", f"{value:.1%}", "of the rate measured here, median"))
    return tiles
