"""The full training state of a run: captured from all ranks, restored on any number of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch

from rwkv_train.training.distributed.collectives import gather_objects
from rwkv_train.training.distributed.strategy import zero_engine
from rwkv_train.training.optim import optimizer_state

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from rwkv_train.training.module import TrainingModule
    from rwkv_train.training.progress import Progress


class Part(Protocol):
    """Something else that a continuation needs, kept in the state under a name of its own.

    Its values are plain ones and tensors in nested dicts and lists, equal on all ranks.
    """

    def state_dict(self) -> dict[str, Any]:
        """What to keep."""
        ...

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Goes on from what was kept; from nothing when the state has no such part."""
        ...


def capture_state(
    trainer: pl.Trainer, module: TrainingModule, progress: Progress, parts: Mapping[str, Part]
) -> dict[str, Any]:
    """The full training state as CPU copies; a collective call."""
    engine = zero_engine(trainer.strategy)
    state = optimizer_state.capture(module.model, trainer.optimizers[0], engine)
    state.update(progress.to_dict())
    state["carried"] = module.carried.capture(trainer.strategy)
    state["rng"] = gather_objects(trainer.strategy, _random_state(trainer))
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None:
        state["scaler"] = scaler.state_dict()
    state.update({name: part.state_dict() for name, part in parts.items()})
    return state


def restore_state(
    trainer: pl.Trainer, module: TrainingModule, state: dict[str, Any], parts: Mapping[str, Part]
) -> None:
    """Puts weights, moments, random states and parts back, on every rank of any number of ranks.

    The counters of `Progress` and the carried states are the caller's.
    """
    engine = zero_engine(trainer.strategy)
    optimizer_state.restore(state, module.model, trainer.optimizers[0], engine)
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None and "scaler" in state:
        scaler.load_state_dict(state["scaler"])
    for name, part in parts.items():
        part.load_state_dict(state.get(name, {}))
    random_states = state.get("rng", [])
    if trainer.global_rank < len(random_states):
        own = random_states[trainer.global_rank]
        torch.set_rng_state(own["cpu"])
        if own["device"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(own["device"])


def _random_state(trainer: pl.Trainer) -> dict[str, Any]:
    # Neither Python's nor NumPy's generator is used in training: samples depend on numbers alone.
    cuda = trainer.strategy.root_device.type == "cuda"
    return {"cpu": torch.get_rng_state(), "device": torch.cuda.get_rng_state() if cuda else None}
