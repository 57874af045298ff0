"""The chart of `benchmarks.wkv`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

COLOURS = {
    "native": "#0b6e4f",
    "native:scan": "#3a9d7a",
    "native:wide": "#7cc4a8",
    "native:chunks": "#b9dfcf",
    "native:segments": "#dcefe7",
    "chunked": "#2f6fb0",
    "reference": "#9a9a9a",
    "fla": "#d17a22",
}


def plot(rows: Sequence[tuple[str, str, str, float]], title: str, machine: str, file: Path) -> None:
    """Writes horizontal bars of tokens/s: a panel per direction, a group per operator.

    rows: (op, backend, direction, tokens/s). The scale is logarithmic; every bar has its number.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    directions = list(dict.fromkeys(row[2] for row in rows))
    present = {row[1] for row in rows}
    names = [name for name in COLOURS if name in present]
    ops = list(dict.fromkeys(row[0] for row in rows))
    height = 1.6 + 0.24 * len(ops) * (len(names) + 1)
    figure, panels = pyplot.subplots(
        1, len(directions), figsize=(11, height), sharex=True, sharey=True, squeeze=False
    )
    rates = [row[3] for row in rows]
    for axes, direction in zip(panels[0], directions):
        for op_place, op in enumerate(ops):
            heights = {row[1]: row[3] for row in rows if row[0] == op and row[2] == direction}
            for place, name in enumerate(n for n in names if n in heights):
                at = op_place * (len(names) + 1) + place
                axes.barh(at, heights[name], 0.9, color=COLOURS[name])
                axes.text(heights[name] * 1.08, at, _short(heights[name]), va="center", fontsize=8)
        middle = (len(names) - 1) / 2
        axes.set_yticks([n * (len(names) + 1) + middle for n in range(len(ops))], ops)
        axes.set_xscale("log")
        axes.set_xlim(min(rates) / 2, max(rates) * 4)
        axes.set_title(direction, fontsize=10)
        axes.set_xlabel("tokens/s (longer is faster)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    panels[0][0].invert_yaxis()
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=COLOURS[name]) for name in names]
    figure.legend(handles, names, loc="lower center", ncols=len(names), frameon=False)
    figure.suptitle(f"{title}\n{machine}", fontsize=11)
    figure.tight_layout(rect=(0, 0.35 / height, 1, 1))
    figure.savefig(file, dpi=140)
    pyplot.close(figure)


def _short(rate: float) -> str:
    """Returns two digits or more with a unit: 950, 17k, 1.2M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rate >= size:
            return f"{rate / size:.{0 if rate >= 10 * size else 1}f}{unit}"
    return f"{rate:.0f}"
