"""Puts together the page of several runs: their curves in one chart, and what differs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rwkv_train.goodput import goodput
from rwkv_train.report.folder_facts import RunFacts, differing_settings, flat_machine, read_facts
from rwkv_train.report.life_times import life_seconds, tells_pauses
from rwkv_train.report.loss_section import loss_series
from rwkv_train.report.page_blocks import (
    PagePart,
    axis,
    chart,
    numbers,
    page_table,
    section,
    series,
    shown_count,
    shown_seconds,
    shown_value,
    tile,
)
from rwkv_train.report.reference_band import compare_with_reference, reference_curves
from rwkv_train.report.run_history import RunHistory
from rwkv_train.report.run_page import recent_loss, written_now
from rwkv_train.report.step_bins import MOST_BINS

# Points of all curves of a kind together.
_MOST_POINTS = 8000
# Title, unit, column, what it is divided by, and how it is drawn.
_COMPARED: tuple[tuple[str, str, str, float, dict[str, bool]], ...] = (
    ("Learning rate", "", "lr", 1, {}),
    ("Norm of the gradient, before clipping", "L2 norm", "grad_norm", 1, {"log": True}),
    ("Throughput", "tokens per second", "tokens_per_second", 1, {"from_zero": True}),
    ("Model's arithmetic (MFU)", "percent", "mfu", 0.01, {"from_zero": True}),
    ("Memory", "GiB", "memory", 2**30, {"from_zero": True}),
)


def comparison_document(folders: Sequence[Path]) -> PagePart:
    """Returns the contents of a page of several runs."""
    facts = [read_facts(folder) for folder in folders]
    names = distinct_names(folders)
    most = min(MOST_BINS, max(64, _MOST_POINTS // len(folders)))
    histories = [RunHistory(folder, most) for folder in folders]
    for history in histories:
        history.update()
    axes: dict[str, PagePart] = {}
    for i, history in enumerate(histories):
        bins = history.bins
        axes[f"steps{i}"] = axis(bins.highs("step"), bins.highs("tokens"))
        records = history.events["val_loss"].records
        axes[f"val{i}"] = axis((r["step"] for r in records), (r["tokens"] for r in records))
    return {
        "title": f"Comparison of {len(folders)} runs",
        "heading": f"Comparison of {len(folders)} runs",
        "subtitle": ", ".join(names),
        "written": written_now(),
        "tiles": [_tile(name, history) for name, history in zip(names, histories)],
        "axes": axes,
        "marks": [],
        "sections": [
            section("losses", "Losses", _loss_charts(names, histories)),
            section("figures", "Figures", [_figures(names, facts, histories)]),
            _differences(names, facts),
            section("curves", "Other curves", _other_charts(names, histories)),
        ],
    }


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """Returns the end of each path that tells it from the others."""
    parts = [folder.resolve().parts for folder in folders]
    most = max(map(len, parts))
    for length in range(1, most + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _tile(name: str, history: RunHistory) -> PagePart:
    loss, last = recent_loss(history), history.last
    if loss is None or last is None:
        return tile(name, "no steps", "")
    return tile(name, f"{loss:.4f}", f"training loss after {last['step'] + 1:,} steps")


def _loss_charts(names: Sequence[str], histories: Sequence[RunHistory]) -> list[PagePart]:
    lines = []
    for i, (name, history) in enumerate(zip(names, histories)):
        line = loss_series(history, name, f"steps{i}", i)
        # The areas of several runs would hide one another.
        lines.append({k: v for k, v in line.items() if k not in ("low", "high")})
    validations = [
        series(
            name,
            f"val{i}",
            numbers([r["val_loss"] for r in history.events["val_loss"].records]),
            shape="points",
            colour=i,
        )
        for i, (name, history) in enumerate(zip(names, histories))
    ]
    charts = [chart("loss", "Training loss", "nats per token", lines, wide=True)]
    found = chart("validation", "Validation loss", "nats per token", validations)
    return [*charts, *([found] if found["series"] else [])]


def _other_charts(names: Sequence[str], histories: Sequence[RunHistory]) -> list[PagePart]:
    charts = []
    for title, unit, key, divisor, more in _COMPARED:
        lines = [
            series(
                name,
                f"steps{i}",
                numbers(history.bins.means(key) / divisor),
                shape="line",
                colour=i,
                smooth=key != "lr",
            )
            for i, (name, history) in enumerate(zip(names, histories))
        ]
        found = chart(key, title, unit, lines, **more)
        if found["series"]:
            charts.append(found)
    return charts


def _figures(
    names: Sequence[str], facts: Sequence[RunFacts], histories: Sequence[RunHistory]
) -> PagePart:
    rows = [_row(*run) for run in zip(names, facts, histories)]
    columns = [
        *("run", "model", "steps", "tokens", "training loss", "validation loss", "best"),
        *("tokens per second", "training time", "goodput", "bad steps", "known-good runs"),
    ]
    return page_table("Figures of the runs", columns, rows)


def _row(name: str, facts: RunFacts, history: RunHistory) -> list[str]:
    loss, last = recent_loss(history), history.last
    validations = [float(r["val_loss"]) for r in history.events["val_loss"].records]
    speeds = history.bins.means("tokens_per_second")
    seconds = life_seconds(history)
    share = goodput(seconds) if tells_pauses(history) else None
    verdict = compare_with_reference(facts.settings, history, reference_curves())
    return [
        name,
        facts.title,
        "0" if last is None else f"{last['step'] + 1:,}",
        "0" if last is None else shown_count(last["tokens"]),
        "–" if loss is None else f"{loss:.4f}",
        f"{validations[-1]:.4f}" if validations else "–",
        f"{min(validations):.4f}" if validations else "–",
        shown_count(float(np.nanmedian(speeds))) if np.isfinite(speeds).any() else "–",
        shown_seconds(seconds["training"]),
        "–" if share is None else f"{share:.1%}",
        f"{history.events['skipped'].count:,}",
        verdict.kind,
    ]


def _differences(names: Sequence[str], facts: Sequence[RunFacts]) -> PagePart:
    """Returns the settings, and the machines' values, that not all runs have alike."""
    rows = [[name, *map(shown_value, values)] for name, values in differing_settings([*facts])]
    words = [f"{name}: {f.fault}." for name, f in zip(names, facts) if f.fault]
    machines = [flat_machine(f.machine) for f in facts]
    keys = dict.fromkeys(key for machine in machines for key in machine)
    others = [
        [key, *(machine.get(key, "–") for machine in machines)]
        for key in keys
        if len({machine.get(key) for machine in machines}) > 1
    ]
    same = "All settings but places are the same." if not rows else ""
    return section(
        "differences",
        "What differs",
        [
            *([page_table("Settings that differ", ["setting", *names], rows)] if rows else []),
            *([page_table("Machines that differ", ["what", *names], others)] if others else []),
        ],
        same,
        *words,
    )
