"""train.py in a process that has the stand-in for a card: `python -m tests.gpu_standin.train_here`.

Takes train.py's flags. Kernels do nothing, so some things are not as on a card: what ranks tell one
another as Python objects goes through gloo on the CPU; no step is one without a token to learn,
although the flag that says so comes back from the card as zero. And every step marks the log.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import pytorch_lightning as pl
import torch

import rwkv_train.training.run as training_run
import train
from rwkv_train.training.bad_steps.step_veto import StepOutcome
from tests.gpu_standin.asking import let_ask


class StepMarks(pl.Callback):
    """Writes `mark step N` into the log where a batch begins."""

    def __init__(self) -> None:
        self._mark = ctypes.CDLL(None).standin_mark

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_index: int
    ) -> None:
        self._mark(f"step {batch_index}".encode())


def prepare() -> None:
    """Makes this process fit for the stand-in."""
    let_ask()
    begin_group = torch.distributed.init_process_group

    def begin_with_gloo(backend: str | None = None, *arguments: Any, **options: Any) -> None:
        begin_group("cpu:gloo,cuda:nccl" if backend == "nccl" else backend, *arguments, **options)

    torch.distributed.init_process_group = begin_with_gloo
    StepOutcome.is_empty = property(lambda outcome: False)
    build_trainer = training_run.build_trainer

    def build_marked(*arguments: Any) -> pl.Trainer:
        trainer = build_trainer(*arguments)
        trainer.callbacks.append(StepMarks())
        return trainer

    training_run.build_trainer = build_marked


if __name__ == "__main__":
    prepare()
    sys.exit(train.main(sys.argv[1:]))
