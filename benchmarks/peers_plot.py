"""The chart of `benchmarks.peers`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

OURS, GPT, OTHERS = "#0b6e4f", "#2f6fb0", "#9a9a9a"


def plot(rows: Sequence[tuple[str, float]], title: str, machine: str, file: Path) -> None:
    """Writes horizontal bars of tokens/s, the slowest above; rows: (name, tokens/s)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ordered = sorted(rows, key=lambda row: row[1])
    names, rates = [name for name, _ in ordered], [rate for _, rate in ordered]
    colours = [
        OURS if name.startswith("RWKV-") and " " not in name else GPT if name == "GPT" else OTHERS
        for name in names
    ]
    figure, axes = pyplot.subplots(figsize=(8, 1.4 + 0.4 * len(names)))
    bars = axes.barh(names, rates, color=colours)
    axes.bar_label(bars, [f" {rate:,.0f}" for rate in rates])
    axes.invert_yaxis()
    axes.set_xlabel("tokens/s of a whole training step")
    axes.set_xlim(0, 1.15 * max(rates))
    axes.set_title(f"{title}\n{machine}", fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
