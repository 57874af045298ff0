"""Measures the cells and writes them down: `python -m tests.gpu_standin.table [--versions 47]`.

Needs what ./run-tests.sh --gpu-standin sets up. budgets.csv gets what was measured, and the table
in benchmarks/RESULTS.md is made of it; cells of versions that are left out stay as they are.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.checkout import ROOT
from tests.gpu_standin import libraries
from tests.gpu_standin.cells import (
    CARDS,
    CELLS,
    MEASURED_STEP,
    PRECISIONS,
    VERSIONS,
    Cell,
    read_budgets,
    run_cell,
    write_budgets,
)
from tests.gpu_standin.standin_data import make_pair
from tests.gpu_standin.standin_runs import StepCounts

RESULTS = ROOT / "benchmarks" / "RESULTS.md"
BEGIN = "<!-- stand-in: python -m tests.gpu_standin.table -->\n"
END = "<!-- end of stand-in -->\n"


def measured(cells: list[Cell], folder: Path) -> dict[Cell, StepCounts]:
    """Trains the cells in turn and returns what a step of each costs."""
    data, found = make_pair(folder), {}
    for number, cell in enumerate(cells):
        place = folder / str(number)
        place.mkdir()
        run = run_cell(cell, data, place)
        if run.ended.returncode != 0 or run.faults:
            sys.exit(f"error: {cell} failed: {run.faults}\n{run.ended.stderr}")
        found[cell] = run.step(MEASURED_STEP)
        print(*cell, found[cell], flush=True)
    return found


def table(counts: Mapping[Cell, StepCounts]) -> str:
    """Returns the counts in Markdown, a row per strategy, number of cards and precision."""
    head = ["strategy", "cards", "precision", *(f"RWKV-{version}" for version in VERSIONS)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for strategy, numbers in CARDS.items():
        for cards in numbers:
            for precision in PRECISIONS:
                row = [counts[Cell(strategy, cards, precision, v)] for v in VERSIONS]
                shown = [f"{c.launches}, {c.copies}, {c.synchronisations}" for c in row]
                lines.append(f"| {strategy} | {cards} | {precision} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def with_table(text: str, counts: Mapping[Cell, StepCounts]) -> str:
    """Returns the text of RESULTS.md with the table between its two marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"{RESULTS.name} has lost the marks of the table"
    return f"{before}{BEGIN}{table(counts)}{END}{after}"


def main() -> None:
    """Runs what the module's docstring describes."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--versions", default="".join(VERSIONS), help="digits, such as 47")
    versions = arguments.parse_args().versions
    reason = libraries.reason_against()
    if reason is not None:
        sys.exit(f"error: {reason}")
    with tempfile.TemporaryDirectory() as folder:
        new = measured([cell for cell in CELLS if cell.version in versions], Path(folder))
    old = read_budgets()
    counts = {cell: new.get(cell) or old.get(cell, StepCounts(0, 0, 0)) for cell in CELLS}
    write_budgets(counts)
    text = RESULTS.read_text(encoding="utf-8")
    RESULTS.write_text(with_table(text, counts), encoding="utf-8")


if __name__ == "__main__":
    main()
