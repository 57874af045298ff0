"""The sections of a run that are curves: rates, gradients, speed, time, memory, tasks."""

from __future__ import annotations

from typing import Any

import numpy as np

from rwkv_train.report.page_blocks import PagePart, chart, known_number, numbers, section, series
from rwkv_train.report.run_history import PAUSES, RunHistory
from rwkv_train.report.step_bins import Matrix

_GROUP_COLOURS = 8


def rate_section(history: RunHistory) -> PagePart:
    """Returns learning rate and weight decay, and the norms of the gradient before clipping."""
    bins = history.bins
    rates = series("learning rate", "steps", numbers(bins.means("lr")), shape="line", colour=2)
    charts = [chart("rate", "Learning rate", "", [rates], marks=True)]
    decays = bins.means("weight_decay")
    if len(decays) and np.nanmin(decays) != np.nanmax(decays):
        line = series("weight decay", "steps", numbers(decays), shape="line", colour=3)
        charts.append(chart("decay", "Weight decay", "", [line]))
    return section("rates", "Rates and gradients", [*charts, *_gradient_charts(history)])


def _gradient_charts(history: RunHistory) -> list[PagePart]:
    """Returns the norm of the whole gradient, and those of its groups if they are there."""
    bins = history.bins
    more: PagePart = {}
    if bins.size > 1:
        more = {"low": numbers(bins.lows("grad_norm")), "high": numbers(bins.highs("grad_norm"))}
    values = numbers(bins.means("grad_norm"))
    line = series("norm", "steps", values, shape="line", colour=0, smooth=True, **more)
    title = "Norm of the gradient, before clipping"
    charts = [chart("gradient", title, "L2 norm", [line], marks=True, log=True)]
    records = history.events["grad_norms"].records
    names = list(dict.fromkeys(str(name) for r in records for name in r["grad_norms"]))
    groups = [
        series(
            name,
            "grad_norms",
            numbers([known_number(r["grad_norms"].get(name)) for r in records]),
            shape="line",
            colour=i,
            smooth=True,
            dashed=i >= _GROUP_COLOURS,
        )
        for i, name in enumerate(names[: 2 * _GROUP_COLOURS])
    ]
    if groups:
        charts.append(
            chart("gradients", "Norms of the gradient's groups", "L2 norm", groups, log=True)
        )
    return charts


def speed_section(history: RunHistory, plan: PagePart) -> PagePart:
    """Returns tokens per second, their share of the machine's arithmetic, memory, and the plan.

    plan: the table of `plan_table`.
    """
    bins = history.bins
    values = numbers(bins.means("tokens_per_second"))
    line = series("tokens per second", "steps", values, shape="line", colour=0, smooth=True)
    note = "Of the steps alone: without saving and validation."
    more = {"marks": True, "note": note, "from_zero": True}
    charts = [chart("speed", "Throughput", "tokens per second", [line], **more)]
    shares = [
        series(name, "steps", numbers(bins.means(key) * 100), shape="line", colour=i, smooth=True)
        for i, (name, key) in enumerate(
            (("of the rate measured here", "mfu"), ("of the card's data sheet", "mfu_card"))
        )
        if bins.knows(key)
    ]
    if shares:
        title = "Model's arithmetic (MFU)"
        charts.append(chart("mfu", title, "percent", shares, from_zero=True))
    return section("speed", "Speed and memory", [*charts, *_memory_chart(history), plan])


def time_section(history: RunHistory, life: PagePart) -> PagePart:
    """Returns what steps wait for, and where the time of the run's life went.

    life: the table of `life_table`.
    """
    charts = _pause_chart(history)
    if history.bins.knows("loop_share"):
        values = numbers(history.bins.means("loop_share") * 100)
        line = series("loop", "steps", values, shape="line", colour=5, smooth=True)
        note = "Of a step's time: what is neither forward, backward, norm nor update."
        title = "Time of the loop around the model"
        charts.append(chart("loop", title, "percent", [line], note=note, from_zero=True))
    return section("time", "Time", [life, *charts])


def _pause_chart(history: RunHistory) -> list[PagePart]:
    bins = history.bins
    whole = bins.means("whole_seconds")
    lines = [
        series(
            words,
            "steps",
            _percent(bins.means(f"{name}_seconds"), whole),
            shape="line",
            colour=i + 1,
            smooth=True,
        )
        for i, (name, words) in enumerate(PAUSES.items())
        # One process waits for no other.
        if bins.total(f"{name}_seconds") > 0
    ]
    note = "Of the time from step to step; what is left of 100 % is the model's."
    found = chart("shares", "Waiting and pauses", "percent", lines, stacked=True, note=note)
    return [found] if lines else []


def _percent(part: Matrix, whole: Matrix) -> list[float | None]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return numbers(np.where(whole > 0, 100 * part / whole, np.nan))


def _memory_chart(history: RunHistory) -> list[PagePart]:
    if not history.bins.knows("memory"):
        return []
    values = numbers(history.bins.highs("memory") / 2**30)
    line = series("memory", "steps", values, shape="line", colour=4)
    note = "Of a process: at most allocated on its card so far; on a CPU what it holds."
    return [chart("memory", "Memory", "GiB", [line], note=note, from_zero=True)]


def task_section(history: RunHistory) -> PagePart | None:
    """Returns the figures of tasks, a chart a metric; None without any."""
    records = history.events["eval"].records
    metrics: dict[str, dict[str, None]] = {}
    for record in records:
        for task, figures in _figures(record).items():
            for metric in figures:
                if not metric.endswith("_stderr") and known_number(figures[metric]) is not None:
                    metrics.setdefault(metric, {})[task] = None
    blocks = []
    for number, (metric, tasks) in enumerate(list(metrics.items())[:_GROUP_COLOURS]):
        lines = [_task_series(records, task, metric, i) for i, task in enumerate([*tasks][:16])]
        blocks.append(chart(f"task{number}", metric, "", lines))
    return section("tasks", "Tasks", blocks) if blocks else None


def _task_series(records: list[dict[str, Any]], task: str, metric: str, colour: int) -> PagePart:
    found = [_figures(r).get(task, {}) for r in records]
    values = [known_number(f.get(metric)) for f in found]
    more: PagePart = {}
    errors = [known_number(f.get(f"{metric}_stderr")) for f in found]
    if any(e is not None for e in errors):
        spread = [(v, e or 0.0) for v, e in zip(values, errors)]
        more = {
            "low": numbers([None if v is None else v - e for v, e in spread]),
            "high": numbers([None if v is None else v + e for v, e in spread]),
        }
    return series(task, "eval", numbers(values), shape="points", colour=colour, **more)


def _figures(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = record.get("eval")
    if not isinstance(found, dict):
        return {}
    return {str(task): f for task, f in found.items() if isinstance(f, dict)}
