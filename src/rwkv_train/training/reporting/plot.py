"""proj_dir/loss.png: training and validation loss and the learning rate over tokens."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from rwkv_train.errors import missing_package
from rwkv_train.report.run_records import change_marks, read_metrics
from rwkv_train.training.reporting.position_plot import draw_positions
from rwkv_train.training.reporting.records import EpochRecord
from rwkv_train.training.reporting.reporter import Reporter
from rwkv_train.training.reporting.validation_record import ValidationRecord

LOSS_PLOT = "loss.png"
# Points drawn of a long run; more cost time and show nothing.
MOST_POINTS = 4000


class LossPlot(Reporter):
    """Redraws loss.png at every mini-epoch, every validation and at the end.

    At validations also loss_by_position.png; ctx_len: of training.
    """

    label = LOSS_PLOT

    def __init__(self, folder: Path, title: str, ctx_len: int) -> None:
        self._folder = folder
        self._enabled = importlib.util.find_spec("matplotlib") is not None
        if not self._enabled:
            # A picture is no reason to refuse a run; the numbers are in metrics.jsonl.
            print(f"not drawn: {missing_package(LOSS_PLOT, 'matplotlib', 'plot')}")
        self._title = title
        self._ctx_len = ctx_len

    def on_epoch(self, record: EpochRecord) -> None:
        """Redraws."""
        if self._enabled:
            draw_loss(self._folder, self._title)

    def on_validation(self, record: ValidationRecord) -> None:
        """Redraws."""
        if not self._enabled:
            return
        draw_loss(self._folder, self._title)
        draw_positions(self._folder, self._title, self._ctx_len)


def draw_loss(folder: Path, title: str) -> None:
    """Draws metrics.jsonl of `folder` into loss.png; nothing when there are no steps yet."""
    records = read_metrics(folder)
    steps = [r for r in records if {"loss", "lr", "tokens"} <= r.keys()]
    if not steps:
        return
    # Imported here: half a second that a run without a plot need not pay. Figure instead of
    # pyplot: no global state and no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    shown = steps[:: max(1, len(steps) // MOST_POINTS)]
    tokens = [r["tokens"] for r in shown]
    upper.plot(tokens, [r["loss"] for r in shown], color="#9ecae1", lw=0.8, label="train, a step")
    upper.plot(
        tokens,
        _smoothed([r["loss"] for r in shown]),
        color="#08519c",
        lw=1.6,
        label="train, smoothed",
    )
    held_out = _held_out_losses(records)
    if held_out:
        upper.plot(
            *zip(*held_out),
            color="#d94801",
            marker="o",
            ms=4,
            lw=1.2,
            label=f"validation (last {held_out[-1][1]:.4f})",
        )
    for place, text in change_marks(folder):
        upper.axvline(place, color="#756bb1", lw=0.8, ls="--")
        # Along the line, at the bottom: the curve comes from above.
        where = {"xytext": (2, 2), "textcoords": "offset points", "rotation": 90}
        base = (place, 0.0)
        upper.annotate(text, base, xycoords=upper.get_xaxis_transform(), fontsize=7, **where)
    upper.set_ylabel("loss (nats per token)")
    upper.set_title(title)
    upper.grid(alpha=0.3)
    upper.legend(loc="upper right")
    lower.plot(tokens, [r["lr"] for r in shown], color="#31a354", lw=1.2)
    lower.set_ylabel("learning rate")
    lower.set_xlabel("tokens")
    lower.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    lower.grid(alpha=0.3)
    # matplotlib leaves it without annotations.
    FigureCanvasAgg(figure).print_png(  # type: ignore[no-untyped-call]
        str(folder / LOSS_PLOT)
    )


def _held_out_losses(records: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """Returns (tokens seen, loss) of every validation."""
    # A validation names its step only, and one after a skipped step has no place on the curve.
    tokens_of = {r["step"]: r["tokens"] for r in records if {"loss", "step", "tokens"} <= r.keys()}
    return [
        (tokens_of[r["step"]], r["val_loss"])
        for r in records
        if "val_loss" in r and r.get("step") in tokens_of
    ]


def _smoothed(values: list[float]) -> list[float]:
    """Returns the exponential mean over about a fortieth of the curve, corrected for its start."""
    keep = 1 - 1 / max(2.0, len(values) / 40)
    mean, weight, result = 0.0, 0.0, []
    for value in values:
        mean = keep * mean + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        result.append(mean / weight)
    return result
