"""The figure of `benchmarks.mqar`: accuracy against pairs, and against steps, a line a version."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

STYLES = {
    "4": ("#9a9a9a", "s"),
    "5": ("#d08a2e", "^"),
    "6": ("#2f6fb0", "D"),
    "7": ("#0b6e4f", "o"),
}


def plot(results: Sequence[dict[str, Any]], title: str, file: Path) -> None:
    """Writes the panels: for every width accuracy by pairs, for the largest accuracy by steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    widths = sorted({r["width"] for r in results})
    by_steps = [r for r in results if r["width"] == widths[-1]]
    pairs = sorted({r["pairs"] for r in by_steps})
    columns = max(2, len(widths), len(pairs))
    figure = pyplot.figure(figsize=(1 + 3.2 * columns, 7.2), layout="constrained")
    # Rows of their own, whose panels share the width of the figure.
    above, below = figure.subfigures(2, 1)
    upper = above.subplots(1, len(widths), sharey=True, squeeze=False)[0]
    lower = below.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
    for axes, width in zip(upper, widths):
        _accuracy_by_pairs(axes, [r for r in results if r["width"] == width], width)
    for axes, count in zip(lower, pairs):
        _accuracy_by_steps(axes, [r for r in by_steps if r["pairs"] == count], count, widths[-1])
    for axes in (upper[0], lower[0]):
        axes.set_ylabel("accuracy on held-out rows")
        axes.set_ylim(-0.03, 1.03)
    lines, names = upper[0].get_legend_handles_labels()
    below.legend(lines, names, loc="outside lower center", ncols=len(names), frameon=False)
    above.suptitle(title, fontsize=11)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _accuracy_by_pairs(axes: Any, results: Sequence[dict[str, Any]], width: int) -> None:
    pairs = sorted({r["pairs"] for r in results})
    for version in sorted({r["version"] for r in results}):
        mine = sorted(
            (r["pairs"], r["accuracy"][str(r["steps"])]) for r in results if r["version"] == version
        )
        colour, marker = STYLES[version]
        axes.plot(*zip(*mine), color=colour, marker=marker, label=f"RWKV-{version}")
    axes.plot(
        pairs,
        [1 / p for p in pairs],
        color="#444444",
        linestyle=":",
        label="any value of the row: 1 / pairs",
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(pairs, [str(p) for p in pairs])
    axes.minorticks_off()
    axes.set_xlabel("pairs in a row")
    axes.set_title(f"after training, width {width}", fontsize=10)


def _accuracy_by_steps(
    axes: Any, results: Sequence[dict[str, Any]], pairs: int, width: int
) -> None:
    for result in sorted(results, key=lambda r: r["version"]):
        steps = [int(step) for step in result["accuracy"]]
        colour, marker = STYLES[result["version"]]
        axes.plot(
            steps, list(result["accuracy"].values()), color=colour, marker=marker, markersize=4
        )
    axes.axhline(1 / pairs, color="#444444", linestyle=":")
    axes.set_xlabel("steps of 32 rows")
    axes.set_title(f"{pairs} pairs, width {width}", fontsize=10)
