"""Stores what a run saves in single files of full tensors, which the first rank writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from rwkv_train.training.checkpointing.save_job import SaveSteps
from rwkv_train.training.checkpointing.state_writer import StateWriter
from rwkv_train.training.distributed.strategy import zero_engine
from rwkv_train.training.module import TrainingModule
from rwkv_train.training.optim import optimizer_state
from rwkv_train.training.optim.host_copies import HostCopies


class WholeStates:
    """Gathers full tensors on the first rank.

    writer: writes them; None on the other ranks, which take part in the gathering and keep nothing
    of it. frozen: values of the parameters that do not learn, by name, see `full_weights`.
    """

    def __init__(self, writer: StateWriter | None, frozen: Mapping[str, Tensor]) -> None:
        self._writer = writer
        self._frozen = frozen
        self._copies = HostCopies(keeps=writer is not None)

    def prepare(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Does nothing: the memory of copies of everything is taken for a save and given back."""

    def capture(
        self, trainer: pl.Trainer, module: TrainingModule, *, moments: bool
    ) -> dict[str, Any]:
        """Returns copies on the CPU of weights and moments, or of weights alone. Collective."""
        parts = module.model, trainer.optimizers[0], zero_engine(trainer.strategy)
        if moments:
            return optimizer_state.capture(*parts, copies=self._copies, frozen=self._frozen)
        weights = optimizer_state.full_weights(*parts, copies=self._copies, frozen=self._frozen)
        return {"weights": weights}

    def saving(self, path: Path, captured: dict[str, Any]) -> SaveSteps | None:
        """Returns the calls that write a state, and the weights `path` unless it is the state's.

        None: this rank writes nothing.
        """
        writer = self._writer
        return None if writer is None else SaveSteps(lambda: writer.write(path, captured))

    def saving_weights(
        self, path: Path, captured: dict[str, Any], about: Mapping[str, Any]
    ) -> SaveSteps | None:
        """Returns the calls that write weights alone."""
        writer, weights = self._writer, captured["weights"]
        if writer is None:
            return None
        return SaveSteps(lambda: writer.write_weights(path, weights, about))
