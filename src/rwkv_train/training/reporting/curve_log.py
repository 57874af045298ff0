"""Turns every record into curves, under the keys that it has in metrics.jsonl.

This is the one table of keys: a reporter that draws curves gets them from here and has none of its
own, so that a figure has one name in the file, in Weights & Biases and in TensorBoard.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rwkv_train.training.live.live_records import SampleRecord, TaskRecord
from rwkv_train.training.progress import Progress
from rwkv_train.training.reporting.records import (
    BadStepRecord,
    EmptyStepRecord,
    EndRecord,
    RollbackRecord,
    StartRecord,
    StepRecord,
)
from rwkv_train.training.reporting.reporter import Reporter
from rwkv_train.training.reporting.validation_record import ValidationRecord

# The axis of all curves, counted from 1 there.
_AXIS = "step"


def curves(values: Mapping[str, Any]) -> dict[str, float]:
    """Returns what can be drawn of a record of metrics.jsonl: key -> number.

    A number inside another value has both keys with a slash between, a text is 1 where it occurs;
    lists and what is not known are left out.
    """
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= {f"{key}/{part}": number for part, number in curves(value).items()}
        elif isinstance(value, str):
            found[key] = 1.0
        elif isinstance(value, (int, float)) and key != _AXIS:
            found[key] = value
    return found


class CurveLog(Reporter, ABC):
    """A reporter of curves over steps, which are counted from 1 as in RWKV-LM."""

    @abstractmethod
    def draw(self, step: int, points: Mapping[str, float]) -> None:
        """Draws a point of each of some curves at a step."""

    def on_start(self, record: StartRecord) -> None:
        """Draws how long the start took, at the last step before it."""
        self.draw(record.step, curves(asdict(record)))

    def on_step(self, record: StepRecord, progress: Progress) -> None:
        """Draws all figures of the step."""
        self.draw(record.step + 1, curves(record.values()))

    def on_bad_step(self, record: BadStepRecord) -> None:
        """Draws that a step was skipped, which has no other record."""
        self.draw(record.step + 1, curves(asdict(record)))

    def on_empty_step(self, record: EmptyStepRecord) -> None:
        """Draws that a step had nothing to learn."""
        self.draw(record.step + 1, curves(asdict(record)))

    def on_rollback(self, record: RollbackRecord) -> None:
        """Draws after which step the run rolled back."""
        self.draw(record.step + 1, curves(asdict(record)))

    def on_validation(self, record: ValidationRecord) -> None:
        """Draws losses and their like at the step they were measured after."""
        self.draw(record.step + 1, curves(record.values()))

    def on_tasks(self, record: TaskRecord) -> None:
        """Draws every figure of every task."""
        self.draw(record.step + 1, curves(record.values()))

    def on_samples(self, record: SampleRecord) -> None:
        """Draws how far the two kinds of logits are apart; the texts are for who can show them."""
        self.draw(record.step + 1, curves(record.values()))

    def on_end(self, record: EndRecord) -> None:
        """Draws how long the run took behind its last step."""
        self.draw(record.step + 1, curves(asdict(record)))
