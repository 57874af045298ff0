"""The full training state beside a checkpoint: what makes a resumed run continue exactly.

`rwkv-N.pth` holds the weights for the world; `rwkv-N.state` beside it holds what only the trainer
needs: fp32 weights, the optimizer's moments, the step, random states, loss averages and the
configuration. It is one file of full tensors by parameter name, so it fits any number of processes
and any strategy. The name does not end in .pth, so no other program takes it for a checkpoint.
"""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from src.checkpoint.names import FINAL, epoch_of
from src.errors import CheckpointError
from src.files import replacing

FORMAT = 2
SUFFIX = ".state"
# What every reader relies on; the rest may be absent.
REQUIRED = ("format", "step", "weights", "optimizer", "moments", "optimizer_steps")


@dataclass(frozen=True)
class Candidate:
    """A file a run could go on from: a training state, or bare weights when it has no state."""

    epoch: int
    weights: Path | None
    state: Path | None


def state_path(checkpoint: Path) -> Path:
    """Where the training state of `checkpoint` (rwkv-N.pth or rwkv-final.pth) lies."""
    return checkpoint.with_suffix(SUFFIX)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Writes a training state (nested dicts of tensors and plain values) atomically.

    Raises CheckpointError; what was at `path` before is then unchanged.
    """
    try:
        # A handle, because given a path torch writes its name into the file.
        with replacing(path) as beside, beside.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"cannot write {path}: {error}; free the disk or choose another --proj_dir. "
            "What was there before is unchanged"
        ) from error


def load_state(path: Path) -> dict[str, Any]:
    """Reads what `save_state` wrote; tensors stay on disk until used. Raises CheckpointError."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"{path} is damaged: wrong checksum of its part {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError,
            zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is truncated or damaged: {error}") from error
    missing = [key for key in REQUIRED if not isinstance(state, dict) or key not in state]
    if missing:
        raise CheckpointError(f"{path} is no training state: it lacks {', '.join(missing)}")
    if state["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {state['format']}, this version reads format {FORMAT}"
        )
    return state


def resume_candidates(folder: Path) -> list[Candidate]:
    """Numbered checkpoints and states in `folder`, newest first; rwkv-init.pth is not one."""
    epochs: dict[int, dict[str, Path]] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        epoch = epoch_of(path.with_suffix(".pth").name)
        if path.suffix in (".pth", SUFFIX) and epoch is not None and epoch >= 0 and path.is_file():
            epochs.setdefault(epoch, {})[path.suffix] = path
    return [
        Candidate(epoch, epochs[epoch].get(".pth"), epochs[epoch].get(SUFFIX))
        for epoch in sorted(epochs, reverse=True)
    ]


def final_state(folder: Path) -> Path | None:
    """The training state of a finished run in `folder`, None when there is none."""
    path = state_path(folder / FINAL)
    return path if path.is_file() else None


def drop_old_states(folder: Path, keep: int) -> None:
    """Deletes the training states (never the weights) older than the newest `keep`."""
    states = [c.state for c in resume_candidates(folder) if c.state is not None]
    for path in states[keep:]:
        path.unlink(missing_ok=True)
