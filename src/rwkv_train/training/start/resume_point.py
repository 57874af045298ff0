"""Where a run starts: fresh weights, a given model, or the newest state of its project folder."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rwkv_train.checkpoint.digest import file_digest
from rwkv_train.checkpoint.names import BEST, FINAL, INIT, INIT_STATES, epoch_of
from rwkv_train.checkpoint.resume import (
    Candidate,
    StateFile,
    list_states,
    load_state,
    resume_candidates,
)
from rwkv_train.checkpoint.weights import load_weights, read_shapes
from rwkv_train.config.resolved import ResolvedOptim
from rwkv_train.config.schema import TrainConfig
from rwkv_train.errors import CheckpointError, ConfigError
from rwkv_train.training.optim.optimizer_state import without_moments
from rwkv_train.training.progress import Progress
from rwkv_train.training.start.base_model import base_record, find_base, require_same_base


@dataclass
class Origin:
    """The starting point of a run.

    kind: "fresh" (new initial weights), "weights" (a file of weights, an empty optimizer) or
    "state" (exact continuation).
    epoch: number of the mini-epoch the file was saved after; -1 for initial weights.
    shapes: of the tensors it starts with; None when fresh.
    base, states: files whose tensors come before and after those of `path`: the base model of
    trained initial states or adapters, and the states that were supplied for a base model.
    donor: the smaller model from which stage 1 makes a larger one.
    folder, keeps_base: the project folder, and whether the base model stays as it is in the run.
    base_record: what the run remembers of the base model; known once `weights` was called.
    notes: what people should know, such as files that were passed over and why.
    """

    kind: Literal["fresh", "weights", "state"]
    path: Path | None = None
    epoch: int = -1
    shapes: dict[str, tuple[int, ...]] | None = None
    state: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    base: Path | None = None
    states: Path | None = None
    donor: Path | None = None
    folder: Path = Path()
    keeps_base: bool = False
    base_record: dict[str, Any] | None = None

    def weights(self) -> dict[str, Tensor]:
        """Tensors by checkpoint key; fp32 master weights when continuing exactly."""
        if self.state is not None:
            if self.base is None:
                return self.state["weights"]
            weights = load_weights(self.base, torch.float32)
            self.base_record = base_record(self.base, self.folder, weights)
            require_same_base(self.state["base"], self.base_record, self.base, self.path)
            return weights | self.state["weights"]
        assert self.path is not None, "fresh weights are initialised, not loaded"
        files = [path for path in (self.base, self.path, self.states) if path is not None]
        loaded = [load_weights(path, torch.float32) for path in files]
        if self.keeps_base:
            self.base_record = base_record(files[0], self.folder, loaded[0])
        return {name: value for weights in loaded for name, value in weights.items()}


def find_origin(train: TrainConfig) -> Origin:
    """Chooses by stage what the run starts from; reads states completely, weights' shapes only.

    Raises ConfigError or CheckpointError when the stage asks for something that is not there.
    """
    folder = Path(train.proj_dir)
    if train.train_stage in (0, 1):
        _require_unused(folder, train.train_stage)
        if train.train_stage == 1 and train.load_model is not None:
            return Origin("fresh", donor=Path(train.load_model))
        return _given_or_fresh(train)
    found = _newest(folder, train)
    if found is not None:
        return found
    if train.train_stage is not None:
        raise ConfigError(
            f"--train_stage {train.train_stage} goes on from a checkpoint, and {folder} holds "
            "none; write the initial weights first with --train_stage 1 (demo-training-prepare.sh),"
            " or copy a base model there as rwkv-init.pth"
        )
    return _given_or_fresh(train)


def change_optimizer(origin: Origin, progress: Progress, optim: ResolvedOptim) -> Progress:
    """The counters to go on with when `origin` is a state, perhaps of another optimizer.

    Moments of another optimizer are dropped from it and the warmup ramp starts again, because it
    protects empty moments; a note says so.
    """
    before = origin.state["optimizer"]
    if before == optim.optimizer:
        return progress
    origin.state = without_moments(origin.state)
    ramp = (
        f"the warmup of {optim.warmup_steps} steps is repeated"
        if optim.warmup_steps
        else "there is no warmup: --warmup_steps 10 would give one"
    )
    origin.notes.append(
        f"{origin.path.name} holds the moments of {before}, this run has {optim.optimizer}: its"
        f" moments start empty and {ramp}"
    )
    return replace(progress, ramp_begin=progress.step)


def _given_or_fresh(train: TrainConfig) -> Origin:
    if train.load_model is None:
        return Origin("fresh")
    return _from_weights(Path(train.load_model), -1, train, notes=[])


def _newest(folder: Path, train: TrainConfig) -> Origin | None:
    """The newest readable training state, else the newest readable weights, else the initial."""
    notes: list[str] = []
    candidates = resume_candidates(folder)
    origin = _newest_state(train, candidates, notes)
    if origin is not None:
        return origin
    # Ours, killed before the final state was written, goes on from the state before.
    if (folder / FINAL).is_file():
        finished = (
            f"{folder / FINAL} is the end of a finished run, and there is no training state to go "
            "on from; choose another --proj_dir, or move that file away to train on from the "
            "newest numbered checkpoint"
        )
        raise ConfigError("; ".join([finished, *notes]))
    files = [(c.epoch, c.weights) for c in candidates if c.weights is not None]
    files.append((-1, folder / INIT))
    for epoch, path in files:
        if not path.is_file():
            continue
        try:
            origin = _from_weights(path, epoch, train, notes)
        except CheckpointError as error:
            notes.append(f"passed over: {error}")
            continue
        if epoch >= 0:
            notes.append(
                f"{path.name} has no training state beside it: the optimizer starts empty and the "
                "warmup is repeated"
            )
        return origin
    if notes:
        raise CheckpointError(f"no checkpoint in {folder} can be used: " + "; ".join(notes))
    return None


def _newest_state(
    train: TrainConfig, candidates: list[Candidate], notes: list[str]
) -> Origin | None:
    """The verified state that is furthest in the data; notes say what was passed over and why."""
    # Those whose place is unknown first, so that they are named in any case.
    files = list_states(Path(train.proj_dir))
    for file in sorted(files, key=lambda file: file.position is not None):
        origin = _from_state(file, train, notes)
        if origin is None:
            continue
        if file.path.stem != Path(FINAL).stem:
            # A finished run's weights are older than its end, states or not.
            newer = [c.weights for c in candidates if c.epoch > origin.epoch and c.weights]
            notes.extend(f"{path} has no usable training state: passed over" for path in newer)
        return origin
    return None


def _from_weights(path: Path, epoch: int, train: TrainConfig, notes: list[str]) -> Origin:
    """A file of weights, completed by a base model or by states that lie in the project folder."""
    folder = Path(train.proj_dir)
    origin = Origin(
        "weights",
        path,
        epoch,
        read_shapes(path),
        notes=notes,
        folder=folder,
        keeps_base=train.train_type != "all",
    )
    if origin.shapes and all(_is_state(name) for name in origin.shapes):
        origin.base = folder / INIT
        if not origin.base.is_file():
            raise CheckpointError(
                f"{path} holds only trained initial states; copy their base model to {origin.base}"
            )
        origin.shapes = read_shapes(origin.base) | origin.shapes
        notes.append(f"{path.name} holds the initial states, {INIT} their base model")
    supplied = folder / INIT_STATES
    if supplied.is_file() and not any(_is_state(name) for name in origin.shapes):
        if train.train_type == "states":
            origin.states = supplied
            origin.shapes = origin.shapes | read_shapes(supplied)
            notes.append(f"the initial states are those of {INIT_STATES}")
        else:
            notes.append(f"{INIT_STATES} is not used: --train_type {train.train_type}")
    return origin


def _is_state(name: str) -> bool:
    return name.endswith(".time_state")


def _from_state(file: StateFile, train: TrainConfig, notes: list[str]) -> Origin | None:
    path = file.path
    try:
        if file.position is None:
            raise CheckpointError(file.fault)
        state = load_state(path)
    except CheckpointError as error:
        notes.append(f"passed over: {error}")
        return None
    shapes = {name: tuple(value.shape) for name, value in state["weights"].items()}
    in_name = epoch_of(path.with_suffix(".pth").name)
    epoch = -1 if path.stem == Path(FINAL).stem else state.get("epoch", in_name or 0)
    notes.extend(_about_weights(path.with_suffix(".pth"), state.get("weights_digest")))
    origin = Origin("state", path, epoch, shapes, state, notes, folder=Path(train.proj_dir))
    if "base" in state:
        origin.base = find_base(state["base"], origin.folder, train.load_model, path)
        origin.shapes = read_shapes(origin.base) | shapes
    return origin


def _about_weights(path: Path, digest: str | None) -> list[str]:
    """Says when the weights beside a state are not those that were saved with it."""
    if digest is None or not path.is_file():
        return []
    try:
        same = file_digest(path) == digest
    except OSError as error:
        return [f"{path} cannot be read: {error.strerror}; the state beside it is complete"]
    return (
        []
        if same
        else [f"{path} is damaged or from another save than the state beside it, which is complete"]
    )


def _require_unused(folder: Path, stage: int) -> None:
    """Stages 0 and 1 start anew; they must not write over what an earlier run left."""
    names = [c.weights or c.state for c in resume_candidates(folder)]
    names += [state.path for state in list_states(folder)]
    taken = list(dict.fromkeys(path.name for path in names if path is not None))
    if stage == 1:
        taken += [name for name in (INIT,) if (folder / name).exists()]
    taken += [name for name in (FINAL, BEST) if (folder / name).exists()]
    if taken:
        raise ConfigError(
            f"--train_stage {stage} starts anew, but {folder} already holds {', '.join(taken[:4])};"
            " choose another --proj_dir, or go on from there with --train_stage 3"
        )
