"""Checkpoints and the training state beside them: gathered from all ranks, written by one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from src.checkpoint.names import FINAL, numbered
from src.checkpoint.resume import drop_old_states, save_state, state_path
from src.config.load import dump_config
from src.errors import CheckpointError
from src.training import optimizer_state
from src.training.publishing import publish, state_beside
from src.training.strategy import zero_engine
from src.training.together import gather_objects, raise_together

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from src.config.schema import RunConfig
    from src.training.module import TrainingModule
    from src.training.plan import Plan
    from src.training.progress import Progress

DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
# The newest state is the resume point; the one before it serves when that one is damaged.
STATES_KEPT = 2


class Saver:
    """Writes rwkv-N.pth, rwkv-final.pth and their training states into the project folder."""

    def __init__(
        self, config: RunConfig, plan: Plan, base: dict[str, Any] | None = None
    ) -> None:
        """base: what the state remembers of a frozen base model, see `base_model`."""
        self._config = config
        self._plan = plan
        self._base = base
        self._folder = Path(config.train.proj_dir)
        self._dtype = torch.float32 if config.train.save_fp32 else DTYPES[config.hardware.precision]

    def save_epoch(
        self, trainer: pl.Trainer, module: TrainingModule, progress: Progress, epoch: int
    ) -> Path:
        """Saves mini-epoch `epoch`; a collective call. Returns the path of the weights."""
        path = self._folder / numbered(epoch)
        self._save(trainer, module, progress, path)
        if trainer.is_global_zero:
            drop_old_states(self._folder, STATES_KEPT)
        return path

    def save_final(
        self, trainer: pl.Trainer, module: TrainingModule, progress: Progress
    ) -> Path:
        """Saves the end of the run; a collective call. Returns the path of the weights."""
        path = self._folder / FINAL
        self._save(trainer, module, progress, path)
        return path

    def _save(
        self, trainer: pl.Trainer, module: TrainingModule, progress: Progress, path: Path
    ) -> None:
        state = capture_state(trainer, module, progress)
        fault = None
        if trainer.is_global_zero:
            try:
                self._write(path, state)
            except CheckpointError as error:
                fault = error
        raise_together(trainer.strategy, fault)

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        state["config"] = dump_config(self._config)
        state["tokens_per_step"] = self._plan.tokens_per_step
        state["ctx_len"], state["windows"] = self._config.data.ctx_len, self._plan.windows
        state["warmup_steps"] = self._config.optim.warmup_steps
        state["optimizer"] = self._config.optim.optimizer
        # Checked first: a model that is not finite must not replace the state either.
        publish(path, state["weights"], self._config, self._dtype, self._base)
        state.update(state_beside(state["weights"], self._config, self._base))
        save_state(state_path(path), state)


def capture_state(
    trainer: pl.Trainer, module: TrainingModule, progress: Progress
) -> dict[str, Any]:
    """The full training state of a run; a collective call."""
    engine = zero_engine(trainer.strategy)
    state = optimizer_state.capture(module.model, trainer.optimizers[0], engine)
    state.update(progress.to_dict())
    state["carried"] = module.carried.capture(trainer.strategy)
    state["rng"] = gather_objects(trainer.strategy, _random_state(trainer))
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None:
        state["scaler"] = scaler.state_dict()
    return state


def restore_state(trainer: pl.Trainer, module: TrainingModule, state: dict[str, Any]) -> None:
    """Puts weights, moments and random states back, on every rank of any number of ranks."""
    engine = zero_engine(trainer.strategy)
    optimizer_state.restore(state, module.model, trainer.optimizers[0], engine)
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None and "scaler" in state:
        scaler.load_state_dict(state["scaler"])
    random_states = state.get("rng", [])
    if trainer.global_rank < len(random_states):
        own = random_states[trainer.global_rank]
        torch.set_rng_state(own["cpu"])
        if own["device"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(own["device"])


def _random_state(trainer: pl.Trainer) -> dict[str, Any]:
    cuda = trainer.strategy.root_device.type == "cuda"
    return {
        "cpu": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state() if cuda else None,
    }
