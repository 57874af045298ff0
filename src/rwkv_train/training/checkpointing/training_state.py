"""The full training state of a run: captured from all ranks, restored on any number of them."""

from __future__ import annotations

from typing import Any, Protocol

import pytorch_lightning as pl
import torch

from rwkv_train.training.distributed.collectives import gather_objects
from rwkv_train.training.distributed.strategy import zero_engine
from rwkv_train.training.module import TrainingModule
from rwkv_train.training.optim import optimizer_state
from rwkv_train.training.optim.loss_scale import capture_loss_scale, restore_loss_scale
from rwkv_train.training.progress import Progress


class Stateful(Protocol):
    """Something that gives plain values for the training state, equal on all ranks."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what to keep."""
        ...


def capture_run(
    trainer: pl.Trainer, module: TrainingModule, progress: Progress, detector: Stateful
) -> dict[str, Any]:
    """Returns what a training state holds besides weights and moments. Collective.

    Carried states are complete on rank zero alone.
    """
    state: dict[str, Any] = dict(progress.to_dict())
    state["carried"] = module.carried.capture(trainer.strategy)
    state["rng"] = gather_objects(trainer.strategy, _random_state(trainer))
    scale = capture_loss_scale(_torch_scaler(trainer), zero_engine(trainer.strategy))
    if scale is not None:
        state["scaler"] = scale
    # The keys are a file format: the detector has been "guard" in every state so far.
    state["guard"] = detector.state_dict()
    return state


def restore_state(trainer: pl.Trainer, module: TrainingModule, state: dict[str, Any]) -> None:
    """Puts weights, moments, loss scale and random states back. Collective.

    Every rank passes the whole state and takes its share, whatever the number of ranks was. The
    counters of `Progress`, the detector and the carried states are the caller's: a rollback keeps
    the first, and a run resumes with all of them.
    """
    engine = zero_engine(trainer.strategy)
    optimizer_state.restore(state, module.model, trainer.optimizers[0], engine)
    restore_loss_scale(state.get("scaler"), _torch_scaler(trainer), engine)
    # With more ranks than before the new ones keep the seed that they were given at the start.
    random_states = state.get("rng", [])
    if trainer.global_rank < len(random_states):
        own = random_states[trainer.global_rank]
        torch.set_rng_state(own["cpu"])
        if own["device"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(own["device"])


def _torch_scaler(trainer: pl.Trainer) -> Any | None:
    return getattr(trainer.precision_plugin, "scaler", None)


def _random_state(trainer: pl.Trainer) -> dict[str, Any]:
    # Neither Python's nor NumPy's generator is used in training: samples depend on numbers alone.
    cuda = trainer.strategy.root_device.type == "cuda"
    return {"cpu": torch.get_rng_state(), "device": torch.cuda.get_rng_state() if cuda else None}
