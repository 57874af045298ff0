"""The section of a run's losses, with the axes and marks that all charts of the page share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rwkv_train.report.page_blocks import (
    PagePart,
    axis,
    chart,
    known_number,
    numbers,
    section,
    series,
)
from rwkv_train.report.run_endings import Ending, ending_marks, slow_words
from rwkv_train.report.run_history import RunHistory
from rwkv_train.report.step_bins import thinned

MOST_MARKS = 200
# Validations drawn by position; more lines cannot be told apart.
MOST_POSITION_LINES = 6
MOST_SOURCES = 8


def page_axes(history: RunHistory) -> dict[str, PagePart]:
    """Returns the axes that charts of a run name: its steps, and each kind of event."""
    bins = history.bins
    found = {"steps": axis(bins.highs("step"), bins.highs("tokens"))}
    for name in ("val_loss", "grad_norms", "eval"):
        records = history.events[name].records
        found[name] = axis((r["step"] for r in records), (r["tokens"] for r in records))
    return found


def page_marks(
    history: RunHistory, starts: list[dict[str, Any]], endings: Sequence[Ending]
) -> list[PagePart]:
    """Returns what is marked on the curves: skipped steps, rollbacks, starts, faults."""
    marks = []
    for record in history.events["skipped"].spread(MOST_MARKS):
        marks.append(_mark(record, "skipped", f"skipped: {record['skipped']}"))
    for record in history.events["rollback"].spread(MOST_MARKS):
        marks.append(_mark(record, "rollback", f"went back to {record['rollback']}"))
    for record in history.events["slow"].spread(MOST_MARKS):
        if words := slow_words(record):
            marks.append(_mark(record, "slow", words))
    marks += ending_marks(endings, MOST_MARKS)
    restarts: list[dict[str, Any]] = []
    for record in filter(_is_place, starts):
        # A start behind this place was left when the run went back.
        restarts = [r for r in restarts if r["tokens"] < record["tokens"]]
        restarts += [record] if record["step"] > 0 else []
    for i in thinned(len(restarts), MOST_MARKS):
        record = restarts[i]
        labels = ", ".join(map(str, record.get("labels") or [])) or "resumed"
        # A start that follows n steps stands behind the last of them.
        marks.append(_mark({**record, "step": record["step"] - 1}, "start", labels))
    return marks


def _is_place(record: dict[str, Any]) -> bool:
    return type(record.get("step")) is int and type(record.get("tokens")) is int


def _mark(record: dict[str, Any], kind: str, text: str) -> PagePart:
    # A mark's words are read on a line.
    words = text if len(text) <= 200 else text[:200] + " …"
    return {"step": record["step"] + 1, "tokens": record["tokens"], "kind": kind, "text": words}


def loss_section(history: RunHistory, band: PagePart | None, words: str) -> PagePart:
    """Returns training and validation loss, with a band of known runs where there is one."""
    lines = [loss_series(history, "training", "steps", 0)]
    validations = history.events["val_loss"].records
    losses = numbers([r["val_loss"] for r in validations])
    lines.append(series("validation", "val_loss", losses, shape="points", colour=1))
    if band is not None:
        lines.append(band)
    more = {"marks": True, "wide": True, "note": _thinning(history)}
    losses_chart = chart("loss", "Loss", "nats per token", lines, **more)
    return section("losses", "Losses", [losses_chart, *_validation_charts(history)], words)


def loss_series(history: RunHistory, name: str, axis_name: str, colour: int) -> PagePart:
    """Returns the training loss of a run, with the lowest and highest step of every point."""
    bins = history.bins
    more: PagePart = {}
    if bins.size > 1:
        more = {"low": numbers(bins.lows("loss")), "high": numbers(bins.highs("loss"))}
    values = numbers(bins.means("loss"))
    return series(name, axis_name, values, shape="line", colour=colour, smooth=True, **more)


def _thinning(history: RunHistory) -> str:
    """Returns how many steps a point of a curve stands for, in words."""
    points = len(history.bins.means("step"))
    if not points or history.steps <= points:
        return ""
    read = history.read_share
    part = "" if read == 1 else f", of which {read:.0%} were read: the file is long"
    return (
        f"A point is the mean of about {history.steps / points:.0f} steps{part}; the pale area "
        "reaches from the lowest to the highest of them."
    )


def _validation_charts(history: RunHistory) -> list[PagePart]:
    records = history.events["val_loss"].records
    blocks = []
    if any("val_bits_per_byte" in r for r in records):
        values = numbers([known_number(r.get("val_bits_per_byte")) for r in records])
        line = series("validation", "val_loss", values, shape="points", colour=1)
        blocks.append(chart("bits", "Bits per byte of text", "bits per byte", [line]))
    if any(isinstance(r.get("val_loss_by_source"), dict) for r in records):
        parts = [r.get("val_loss_by_source") or {} for r in records]
        names = list(dict.fromkeys(name for part in parts for name in part))[:MOST_SOURCES]
        lines = [
            series(
                str(name),
                "val_loss",
                numbers([known_number(part.get(name)) for part in parts]),
                shape="points",
                colour=i,
            )
            for i, name in enumerate(names)
        ]
        blocks.append(chart("sources", "Validation loss by source", "nats per token", lines))
    return [*blocks, *_position_chart(history)]


def _position_chart(history: RunHistory) -> list[PagePart]:
    kept = history.events["val_loss"]
    records = [r for r in kept.records if _positions(r)]
    if not records:
        return []
    names = sorted({name for r in records for name in _positions(r)}, key=_begin)
    shown = [records[i] for i in thinned(len(records), MOST_POSITION_LINES)]
    lines = [
        series(
            f"after step {r['step'] + 1}",
            "",
            numbers([known_number(_positions(r).get(name)) for name in names]),
            shape="points",
            colour=0,
            # The newest stands out.
            fade=(i + 1) / len(shown),
        )
        for i, r in enumerate(shown)
    ]
    words = "Each group holds the targets with so many tokens of the document read before them."
    title = "Validation loss by position"
    return [
        chart(
            "positions",
            title,
            "nats per token",
            lines,
            categories=names,
            note=words,
            x_name="tokens read before",
        )
    ]


def _positions(record: dict[str, Any]) -> dict[str, Any]:
    found = record.get("val_loss_by_position")
    return found if isinstance(found, dict) else {}


def _begin(name: str) -> tuple[int, str]:
    first = name.split("-")[0]
    return (int(first) if first.isdigit() else 0, name)
