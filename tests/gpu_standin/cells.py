"""Which runs the table is made of, and what a step of each may cost: budgets.csv.

A budget is what was measured when it was written, and an upper bound: a step that launches, copies
or waits more often fails its test. Who needs one more writes it down, with `python -m
tests.gpu_standin.standin_table`, and says why in the commit.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.gpu_standin.standin_runs import Run, StepCounts, train_on

BUDGETS = Path(__file__).parent / "budgets.csv"
VERSIONS = ("4", "5", "6", "7")
# tf32 is fp32 with another mode of the products, which leaves every count as it is.
PRECISIONS = ("bf16", "fp16", "fp32")
STAGES = (
    "deepspeed_stage_1",
    "deepspeed_stage_2",
    "deepspeed_stage_2_offload",
    "deepspeed_stage_3",
    "deepspeed_stage_3_offload",
)
# version -> part of the names of its operator's kernels
KERNELS = {"4": "wkv4_", "5": "Wkv5_6", "6": "Wkv5_6", "7": "Wkv7"}
# strategy -> the numbers of cards that it is tried with
CARDS: Mapping[str, tuple[int, ...]] = {
    "single_device": (1,),
    "ddp": (2,),
    **dict.fromkeys(STAGES, (1, 2)),
}
STEPS = 4
# The first steps allocate, and ZeRO 3 records the order of its parameters; the last one saves.
MEASURED_STEP = STEPS - 2
SAMPLES_PER_STEP = 4
SMALL: Mapping[str, object] = {
    "n_layer": 2,
    "n_embd": 64,
    "ctx_len": 32,
    "exit_tokens": STEPS * SAMPLES_PER_STEP * 32,
    "epoch_steps": STEPS,
    "lr_init": "1e-3",
    "lr_final": "1e-4",
    "warmup_steps": 1,
    "weight_decay": 0.1,
    "num_workers": 0,
    "plot": 0,
}


class Cell(NamedTuple):
    """A run of the table."""

    strategy: str
    cards: int
    precision: str
    version: str

    @property
    def flags(self) -> dict[str, object]:
        """The flags that make the cell; the others are `SMALL`."""
        return {
            "strategy": self.strategy,
            "precision": self.precision,
            "rwkv_version": self.version,
            "micro_bsz": SAMPLES_PER_STEP // self.cards,
        }


CELLS = [
    Cell(strategy, cards, precision, version)
    for strategy, numbers in CARDS.items()
    for cards in numbers
    for precision in PRECISIONS
    for version in VERSIONS
]


def run_cell(cell: Cell, data: Path, folder: Path, *, layers: int = 2) -> Run:
    """Trains a cell for `STEPS` steps in `folder`, on the pair with the prefix `data`."""
    flags = {"proj_dir": folder / "out", "data_file": data, **SMALL, **cell.flags}
    flags["n_layer"] = layers
    return train_on(folder, flags, cards=cell.cards)


def read_budgets() -> dict[Cell, StepCounts]:
    """Returns the budget of every cell that has one."""
    with BUDGETS.open(encoding="utf-8", newline="") as file:
        return {
            Cell(row["strategy"], int(row["cards"]), row["precision"], row["version"]): StepCounts(
                int(row["launches"]), int(row["copies"]), int(row["synchronisations"])
            )
            for row in csv.DictReader(file)
        }


def write_budgets(measured: Mapping[Cell, StepCounts]) -> None:
    """Replaces the budgets by what was measured."""
    with BUDGETS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*Cell._fields, *StepCounts.__annotations__])
        writer.writerows(
            [*cell, counts.launches, counts.copies, counts.synchronisations]
            for cell, counts in measured.items()
        )
