"""The parts that a page is put together from, as plain values: tiles, charts, tables, texts.

report_page.js draws them and knows nothing of runs. A chart's series names an axis of the page,
which holds the steps and tokens that belong to its values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rwkv_train.report.step_bins import Matrix

PagePart = dict[str, Any]
# Of numbers that are drawn: more cannot be told apart on any screen.
_DIGITS = 5


def numbers(values: Matrix | Sequence[float | None], digits: int = _DIGITS) -> list[float | None]:
    """Returns values for a page, rounded to so many digits; None for what is no number."""
    found = np.array(values, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        power = digits - 1 - np.floor(np.log10(np.abs(found)))
        scale = 10.0 ** np.clip(np.where(np.isfinite(power), power, 0), -300, 300)
        found = np.where(np.isfinite(found), np.round(found * scale) / scale, np.nan)
    return [None if v != v else int(v) if v == int(v) else v for v in found.tolist()]


def axis(steps: Iterable[float], tokens: Iterable[float]) -> PagePart:
    """Returns the places of values: steps, counted from 1 for people, and tokens."""
    return {"step": [int(s) + 1 for s in steps], "tokens": [int(t) for t in tokens]}


def series(name: str, axis_name: str, values: Sequence[float | None], **more: Any) -> PagePart:
    """Returns a line of a chart.

    more: shape (line, points, step, band), low and high, colour (a number), smooth, dashed.
    """
    return {"name": name, "axis": axis_name, "values": values, **more}


def chart(name: str, title: str, unit: str, lines: Sequence[PagePart], **more: Any) -> PagePart:
    """Returns a chart.

    more: log (drawn so at first), from_zero, marks (events are shown), stacked, wide, categories
    (names instead of places), x_name (of these), note (a line below).
    """
    return {
        "kind": "chart",
        "name": name,
        "title": title,
        "unit": unit,
        "series": [line for line in lines if any(v is not None for v in line["values"])],
        **more,
    }


def page_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], **more: Any
) -> PagePart:
    """Returns a table, whose first column names its rows.

    more: closed (only its title is shown until it is opened).
    """
    return {"kind": "table", "title": title, "columns": columns, "rows": rows, **more}


def section(name: str, title: str, blocks: Iterable[PagePart], *words: str) -> PagePart:
    """Returns a section; words: paragraphs before its blocks."""
    return {"name": name, "title": title, "words": [w for w in words if w], "blocks": [*blocks]}


def tile(label: str, value: str, note: str = "") -> PagePart:
    """Returns a figure at the top of the page."""
    return {"label": label, "value": value, "note": note}


def known_number(value: Any) -> float | None:
    """Returns a number, None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number else None


def shown_value(value: object) -> str:
    """Returns a value as people write it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown_value(v)}" for name, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(shown_value, value))
    return str(value)


def shown_bytes(count: float) -> str:
    """Returns a size: 3.2 GiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} bytes" if unit == "bytes" else f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"


def shown_count(count: float) -> str:
    """Returns a large number: 2.05 M."""
    for unit in ("", " k", " M", " G", " T"):
        if abs(count) < 999.5:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g} P"


def shown_seconds(seconds: float) -> str:
    """Returns a time: 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if minutes < 60:
        return f"{int(seconds) // 60} min {int(seconds) % 60:02} s"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{hours // 24} d {hours % 24} h"
