"""proj_dir/loss_by_position.png: how much the model gains from what it has read before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rwkv_train.report.run_records import read_metrics

POSITION_PLOT = "loss_by_position.png"
# Validations drawn, the first and the last of them always; more lines cannot be told apart.
MOST_LINES = 6


def draw_positions(folder: Path, title: str, ctx_len: int) -> None:
    """Draws the validations in metrics.jsonl of `folder`; nothing when there are none.

    ctx_len: of training; what lies beyond it is marked.
    """
    records = [r for r in read_metrics(folder) if r.get("val_loss_by_position")]
    if not records:
        return
    # Imported here, and Figure instead of pyplot: as in `plot`.
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = sorted({n for r in records for n in r["val_loss_by_position"]}, key=_ends)
    shown = _spread(records)
    count = len(shown)
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for i, record in enumerate(shown):
        losses = record["val_loss_by_position"]
        places = [names.index(name) for name in sorted(losses, key=_ends)]
        colour = colormaps["Blues"](0.35 + 0.6 * (i + 1) / count)
        last = i == count - 1
        axes.plot(
            places,
            [losses[names[p]] for p in places],
            marker="o",
            ms=4,
            lw=2.2 if last else 1.2,
            color=colour,
            label=f"after step {record['step'] + 1} (mean {record['val_loss']:.4f})",
        )
    beyond = [i for i, name in enumerate(names) if _ends(name)[0] >= ctx_len]
    if beyond:
        axes.axvspan(
            beyond[0] - 0.5,
            len(names) - 0.5,
            color="#fdd0a2",
            alpha=0.5,
            lw=0,
            label=f"beyond the training context of {ctx_len}",
        )
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_xlabel("tokens read before")
    axes.set_ylabel("validation loss (nats per token)")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    # matplotlib leaves it without annotations.
    FigureCanvasAgg(figure).print_png(  # type: ignore[no-untyped-call]
        str(folder / POSITION_PLOT)
    )


def _spread(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns at most MOST_LINES of the records in equal distances, the first and the last too."""
    count = min(len(records), MOST_LINES)
    return [records[i * (len(records) - 1) // max(count - 1, 1)] for i in range(count)]


def _ends(name: str) -> tuple[int, int]:
    first, end = name.split("-")
    return int(first), int(end)
