"""Runs of train.py on pretended cards, and what their logs say of a step."""

from __future__ import annotations

import atexit
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.gpu_standin import libraries
from tests.training.runs import Ended, start
from tests.training.warm_start import Server

# What the log says of work for the card, of data that moves, and of waiting.
LAUNCHES = ("launch", "product")
COPIES = ("copy",)
SYNCHRONISATIONS = ("sync",)
NEVER = ("fault", "missing")


@dataclass(frozen=True)
class StepCounts:
    """What one step costs the host: kernels and products, copies, waits."""

    launches: int
    copies: int
    synchronisations: int


@dataclass(frozen=True)
class Run:
    """A run that has ended: its status and output, and its processes' logs, line by line."""

    ended: Ended
    logs: list[list[str]]

    @property
    def faults(self) -> list[str]:
        """Launches that a card refuses, collectives that differ, functions the stand-in lacks."""
        return [line for log in self.logs for line in log if line.startswith(NEVER)]

    def step(self, number: int) -> StepCounts:
        """Returns the counts of a step, from the start of its batch to that of the next one.

        Of several ranks the larger ones count.
        """
        counted = [Counter(line.split()[0] for line in _between(log, number)) for log in self.logs]
        return StepCounts(
            *(
                max(sum(counts[kind] for kind in kinds) for counts in counted)
                for kinds in (LAUNCHES, COPIES, SYNCHRONISATIONS)
            )
        )

    def products(self, number: int) -> int:
        """Returns how many of a step's launches are matrix products; of several ranks the most."""
        return max(
            sum(line.startswith("product ") for line in _between(log, number)) for log in self.logs
        )

    def kernels(self, name: str) -> list[str]:
        """Returns the launches of kernels whose name holds `name`."""
        return [
            line
            for log in self.logs
            for line in log
            if line.startswith("launch") and name in line.split()[1]
        ]


def train_on(
    folder: Path, flags: Mapping[str, object], *, cards: int = 1, card: str = "H100"
) -> Run:
    """Runs train.py to its end on so many cards; its logs go into `folder`."""
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    gpus = ("--accelerator", "gpu", "--devices", str(cards))
    run = run_on(
        "tests.gpu_standin.train_here", *gpus, *words, folder=folder, cards=cards, card=card
    )
    # Compilers that a run starts are on the stand-in too, and leave logs without a step.
    steps = [log for log in run.logs if any(line.startswith("mark") for line in log)]
    return Run(run.ended, steps)


def run_on(program: str, *arguments: str, folder: Path, cards: int = 1, card: str = "H100") -> Run:
    """Runs a module on so many cards, in as many processes; its logs go into `folder`."""
    for old in folder.glob("log.*"):
        old.unlink()
    environment = {
        **libraries.environment(),
        "STANDIN_CARD": card,
        "STANDIN_CARDS": str(cards),
        "STANDIN_LOG": str(folder / "log"),
    }
    ended = start(program, *arguments, ranks=cards, environment=environment, by=_server())
    logs = [path.read_text(encoding="utf-8").splitlines() for path in sorted(folder.glob("log.*"))]
    return Run(ended, logs)


@cache
def _server() -> Server:
    made = Server("tests.gpu_standin.warm_standin", libraries.environment())
    atexit.register(made.close)
    return made


def _between(log: list[str], step: int) -> list[str]:
    """Returns the lines of one step; raises AssertionError when it did not begin and end."""
    marks = {line: place for place, line in enumerate(log) if re.match(r"mark step \d+$", line)}
    here, there = f"mark step {step}", f"mark step {step + 1}"
    assert here in marks, f"no step {step} among {len(marks)} steps"
    assert there in marks, f"step {step} is the last one, which has no end"
    return log[marks[here] : marks[there]]
