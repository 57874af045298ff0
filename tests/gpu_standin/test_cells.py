"""Every strategy, precision and version trains on the stand-in, within its budget."""

from __future__ import annotations

import re

import pytest

from tests.gpu_standin.cells import CELLS, KERNELS, MEASURED_STEP, read_budgets, run_cell
from tests.gpu_standin.standin_runs import StepCounts

BUDGETS = read_budgets()


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: "-".join(map(str, cell)))
def test_cell(cell, data, tmp_path):
    run = run_cell(cell, data, tmp_path)
    assert run.ended.returncode == 0, run.ended.stderr
    assert run.faults == []
    assert len(run.logs) == cell.cards, "a rank has left no log"
    assert "WARNING" not in run.ended.stdout, run.ended.stdout
    assert not re.search(r"step \d+ skipped", run.ended.stdout), "the optimizer was left out"
    assert run.kernels(KERNELS[cell.version]), "no launch of the version's own kernel"
    spent, budget = run.step(MEASURED_STEP), BUDGETS[cell]
    over = [
        f"{name}: {getattr(spent, name)}, the budget is {getattr(budget, name)}"
        for name in StepCounts.__annotations__
        if getattr(spent, name) > getattr(budget, name)
    ]
    assert not over, "; ".join(over)


def test_budgets_are_of_the_cells_that_there_are():
    assert sorted(BUDGETS) == sorted(CELLS)
