"""Finds the resume point: fresh weights, a given model, or the project folder's newest state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from rwkv_train.checkpoint.lazy_tensors import shapes_of
from rwkv_train.checkpoint.names import FINAL, INIT, INIT_STATES, epoch_of
from rwkv_train.checkpoint.places import states_in_all
from rwkv_train.checkpoint.provenance import tokens_before
from rwkv_train.checkpoint.resume import StateFile, load_state, resume_candidates
from rwkv_train.checkpoint.state_folder import VerifyParts
from rwkv_train.checkpoint.state_format import StateFormatError
from rwkv_train.checkpoint.weights import load_weights, read_shapes
from rwkv_train.config.resume_differences import Change
from rwkv_train.config.resume_rules import Effect
from rwkv_train.config.schema import TrainConfig
from rwkv_train.errors import CheckpointError, ConfigError
from rwkv_train.training.start.base_model import base_record, find_base, require_same_base
from rwkv_train.training.start.folder_checks import about_copy, about_weights, require_unused

TensorShapes: TypeAlias = Mapping[str, tuple[int, ...]]


class StartWeights(NamedTuple):
    """Tensors by checkpoint key, and what the run has to remember of a frozen base model."""

    tensors: Mapping[str, Tensor]
    base: Mapping[str, Any] | None


@dataclass(frozen=True)
class Fresh:
    """New initial weights; donor: the smaller model from which stage 1 makes a larger one."""

    kind: ClassVar[Literal["fresh"]] = "fresh"
    changes: ClassVar[tuple[Change, ...]] = ()
    donor: Path | None = None
    notes: tuple[str, ...] = ()

    def describe(self, step: int) -> str:
        """Returns the header's line on where the run starts."""
        return "new initial weights"


@dataclass(frozen=True)
class FromWeights:
    """A file of weights, with an empty optimizer.

    epoch: number of the mini-epoch the file was saved after; -1 for initial or given weights.
    shapes: of all tensors the run starts with.
    files: where they are, each completing those before: perhaps the base model of trained initial
    states, then `path`, then perhaps initial states that were supplied.
    folder, keeps_base: the project folder, and whether the base model stays as it is in the run.
    tokens: trained on before a numbered file was written, None: it does not say.
    notes: what people should know, such as files that were passed over and why.
    """

    kind: ClassVar[Literal["weights"]] = "weights"
    changes: ClassVar[tuple[Change, ...]] = ()
    path: Path
    epoch: int
    shapes: TensorShapes
    files: tuple[Path, ...]
    folder: Path
    keeps_base: bool = False
    tokens: int | None = None
    notes: tuple[str, ...] = ()

    def load(self) -> StartWeights:
        """Reads the weights, fp32."""
        loaded = [load_weights(path, torch.float32) for path in self.files]
        # The first file alone is the base: states that complete it are what is trained.
        base = base_record(self.files[0], self.folder, loaded[0]) if self.keeps_base else None
        return StartWeights({name: t for weights in loaded for name, t in weights.items()}, base)

    def describe(self, step: int) -> str:
        """Returns the header's line on where the run starts, which is after `step` steps."""
        return f"weights of {self.path}, empty optimizer{f', at step {step}' if step else ''}"


@dataclass(frozen=True)
class FromState:
    """A verified training state, which the run continues exactly but for `changes`.

    epoch: the mini-epoch in which it was saved; -1 for the end of a finished run.
    shapes: of all tensors the run starts with. state: the file's content.
    base: the file of the frozen base model that the state was trained with, None: it is complete.
    folder: the project folder. notes: as in `FromWeights`.
    """

    kind: ClassVar[Literal["state"]] = "state"
    path: Path
    epoch: int
    shapes: TensorShapes
    state: dict[str, Any]
    folder: Path
    base: Path | None = None
    notes: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()

    def load(self) -> StartWeights:
        """Returns the fp32 master weights, completed by the base model.

        Raises CheckpointError when the base model is not the one of the state.
        """
        own: Mapping[str, Tensor] = self.state["weights"]
        if self.base is None:
            return StartWeights(own, None)
        weights = load_weights(self.base, torch.float32)
        found = base_record(self.base, self.folder, weights)
        require_same_base(self.state["base"], found, self.base, self.path)
        return StartWeights({**weights, **own}, found)

    def describe(self, step: int) -> str:
        """Returns the header's line on where the run starts, which is after `step` steps."""
        if not self.state["moments"]:
            return f"{self.path}: continuation at step {step}, empty optimizer"
        worst = max((change.effect for change in self.changes), default=Effect.NONE)
        if worst >= Effect.COURSE:
            return f"{self.path}: continuation at step {step}, changed as told below"
        rounding = " but for rounding" if worst == Effect.ROUNDING else ""
        condition = "" if self.state.get("data") else ", if the data is what it was"
        return f"{self.path}: exact continuation at step {step}{rounding}{condition}"


ResumePoint: TypeAlias = Fresh | FromWeights | FromState


def find_resume_point(
    train: TrainConfig, places: Sequence[Path] = (), verify: VerifyParts | None = None
) -> ResumePoint:
    """Chooses by stage what the run starts from; reads states completely, weights' shapes only.

    places: folders of second copies, whose states count as those of the project folder. verify: as
    in `load_state`. Raises ConfigError or CheckpointError when the stage asks for something that is
    not there.
    """
    folder = Path(train.proj_dir)
    notes: list[str] = []
    point: ResumePoint | None = None
    # The folder before --load_model: the command that began a run also resumes it after a crash.
    if train.train_stage in (0, 1):
        for place in (folder, *places):
            require_unused(place, train.train_stage)
        if train.train_stage == 1 and train.load_model is not None:
            return Fresh(donor=Path(train.load_model))
    else:
        point = _newest(train, places, notes, verify)
    if point is None and train.train_stage in (2, 3, 4):
        raise ConfigError(
            f"--train_stage {train.train_stage} resumes from a checkpoint, and {folder} holds "
            "none; write the initial weights first with --train_stage 1 (demo-training-prepare.sh),"
            " or copy a base model there as rwkv-init.pth"
        )
    if point is None and train.load_model is not None:
        point = _from_weights(Path(train.load_model), -1, train, notes)
    return replace(point or Fresh(), notes=tuple(notes))


def _newest(
    train: TrainConfig, places: Sequence[Path], notes: list[str], verify: VerifyParts | None
) -> FromState | FromWeights | None:
    """Returns the newest readable training state, else the newest readable weights, else the
    initial ones; None: there is nothing.

    Says in `notes` what was passed over and why. Raises CheckpointError when there are files and
    none can be used.
    """
    folder = Path(train.proj_dir)
    candidates = resume_candidates(folder)
    # A state before any weights, even newer ones: only a state continues exactly.
    state = _newest_state(train, places, notes, verify)
    if state is not None:
        return state
    # Ours, killed before the final state was written, resumes from the state before.
    if (folder / FINAL).is_file():
        finished = (
            f"{folder / FINAL} is the end of a finished run, and there is no training state to go "
            "on from; choose another --proj_dir, or move that file away to train on from the "
            "newest numbered checkpoint"
        )
        raise ConfigError("; ".join([finished, *notes]))
    files = [(c.epoch, c.weights) for c in candidates if c.weights is not None]
    files.append((-1, folder / INIT))
    # An older checkpoint is better than none, if the user is told which one it is.
    for epoch, path in files:
        if not path.is_file():
            continue
        try:
            point = _from_weights(path, epoch, train, notes)
        except CheckpointError as error:
            notes.append(f"passed over: {error}")
            continue
        if epoch >= 0:
            notes.append(
                f"{path.name} has no training state next to it: the optimizer starts empty and the "
                "warmup is repeated"
            )
        return point
    if notes:
        # Not silently from new weights: what lies there may be days of training.
        raise CheckpointError(f"no checkpoint in {folder} can be used: " + "; ".join(notes))
    return None


def _newest_state(
    train: TrainConfig, places: Sequence[Path], notes: list[str], verify: VerifyParts | None
) -> FromState | None:
    """Returns the verified state that is furthest in the data, wherever it is."""
    folder = Path(train.proj_dir)
    files, faults = states_in_all(folder, places)
    notes.extend(faults)
    # Those whose place is unknown first, so that they are named in any case.
    for file in sorted(files, key=lambda file: file.position is not None):
        point = _from_state(file, train, notes, verify)
        if point is None:
            continue
        notes.extend(about_copy(file, files, folder))
        if file.path.stem != Path(FINAL).stem:
            # A finished run's weights are older than its end, states or not.
            numbered = resume_candidates(folder)
            newer = [c.weights for c in numbered if c.epoch > point.epoch and c.weights]
            notes.extend(f"{path} has no usable training state: passed over" for path in newer)
        return point
    return None


def _from_weights(path: Path, epoch: int, train: TrainConfig, notes: list[str]) -> FromWeights:
    """Returns a file of weights, completed by what lies in the project folder.

    That is a base model for a file of initial states, or initial states for a base model. Raises
    CheckpointError when the file cannot be read or its base model is missing.
    """
    folder = Path(train.proj_dir)
    shapes: TensorShapes = read_shapes(path)
    files = [path]
    if shapes and all(_is_initial_state(name) for name in shapes):
        base = folder / INIT
        if not base.is_file():
            raise CheckpointError(
                f"{path} holds only trained initial states; copy their base model to {base}"
            )
        shapes = {**read_shapes(base), **shapes}
        files.insert(0, base)
        notes.append(f"{path.name} holds the initial states, {INIT} their base model")
    supplied = folder / INIT_STATES
    if supplied.is_file() and not any(_is_initial_state(name) for name in shapes):
        if train.train_type == "states":
            shapes = {**shapes, **read_shapes(supplied)}
            files.append(supplied)
            notes.append(f"the initial states are those of {INIT_STATES}")
        else:
            notes.append(f"{INIT_STATES} is not used: --train_type {train.train_type}")
    keeps_base, tokens = train.train_type != "all", tokens_before(path, epoch)
    return FromWeights(path, epoch, shapes, tuple(files), folder, keeps_base, tokens)


def _is_initial_state(name: str) -> bool:
    return name.endswith(".time_state")


def _from_state(
    file: StateFile, train: TrainConfig, notes: list[str], verify: VerifyParts | None
) -> FromState | None:
    """Returns a training state if it is intact; says in `notes` why not.

    Raises CheckpointError when its base model is missing, or when it is intact and of another
    format: passing over the state would lose it.
    """
    path, folder = file.path, Path(train.proj_dir)
    try:
        # The number of a format may be a damaged one: `load_state` tells.
        if file.position is None and not file.other_format:
            raise CheckpointError(file.fault)
        state = load_state(path, verify)
    except StateFormatError:
        raise
    except CheckpointError as error:
        notes.append(f"passed over: {error}")
        return None
    shapes: TensorShapes = shapes_of(state["weights"])
    # Old states do not say their mini-epoch; those of one have its number in their name.
    in_name = epoch_of(path.with_suffix(".pth").name)
    epoch = -1 if path.stem == Path(FINAL).stem else state.get("epoch", in_name or 0)
    # Beside a copy the weights are missing on purpose.
    if path.parent == folder:
        notes.extend(about_weights(path.with_suffix(".pth"), state.get("weights_digest")))
    base = None
    # What is trained is in the state, the frozen rest in a file of its own.
    if "base" in state:
        base = find_base(state["base"], folder, train.load_model, path)
        shapes = {**read_shapes(base), **shapes}
    return FromState(path, epoch, shapes, state, folder, base)
