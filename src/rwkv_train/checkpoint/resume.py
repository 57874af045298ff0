"""The full training state next to a checkpoint, from which a resumed run continues exactly.

`rwkv-N.pth` holds the weights for the world; `rwkv-N.state` next to it holds what only the trainer
needs: fp32 weights, the optimizer's moments, the step, random states, loss averages and the
configuration. It is one file of full tensors by parameter name, or a folder of every rank's part of
them (`state_folder`); either fits any number of processes and any strategy. The name does not end
in .pth, so no other program takes it for a checkpoint. Between mini-epochs a state is saved alone
(`names.step_state`).
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rwkv_train.checkpoint.digest import content_digest
from rwkv_train.checkpoint.memory_shortage import require_memory_sufficed, write_fault
from rwkv_train.checkpoint.names import STATE_SUFFIX, epoch_of, is_state
from rwkv_train.checkpoint.space import require_space
from rwkv_train.checkpoint.state_folder import VerifyParts, copy_folder, load_state_folder
from rwkv_train.checkpoint.state_format import (
    FORMAT,
    StateFormatError,
    other_format,
    require_complete,
    require_format,
)
from rwkv_train.checkpoint.state_manifest import read_state_manifest
from rwkv_train.errors import CheckpointError, short_reason
from rwkv_train.files import replacing


@dataclass(frozen=True)
class Candidate:
    """A beginning for a run: a training state, or bare weights when it has no state."""

    epoch: int
    weights: Path | None
    state: Path | None


@dataclass(frozen=True)
class StateFile:
    """A training state and where in the data it stands; nothing of it is verified yet.

    position: tokens trained on, None when that cannot be read; then `fault` says why.
    digest: the one it names, by which a copy is told from another state of the same step.
    run: the id of the run that wrote it, "" when it does not tell.
    other_format: written by another version, as it seems; its position is not known then.
    """

    path: Path
    position: int | None
    step: int = 0
    fault: str = ""
    digest: str = ""
    run: str = ""
    other_format: bool = False


def state_path(checkpoint: Path) -> Path:
    """Returns the path of the training state of `checkpoint` (rwkv-N.pth or rwkv-final.pth)."""
    return checkpoint.with_suffix(STATE_SUFFIX)


def save_state(path: Path, state: dict[str, Any]) -> str:
    """Writes a training state (nested dicts of tensors and plain values) atomically.

    Returns its digest. Raises CheckpointError; what was at `path` before is then unchanged.
    """
    require_space(path, state)
    content = {"format": FORMAT, **state}
    # Of the content without this key, which `load_state` takes out again to compare.
    digest = content_digest(content)
    content["digest"] = digest
    try:
        # A handle, because given a path torch writes its name into the file.
        with replacing(path, over_folder=True) as partial, partial.open("wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        raise write_fault(path, error) from error
    return digest


def load_state(path: Path, verify: VerifyParts | None = None) -> dict[str, Any]:
    """Reads and verifies a state, a file or a folder; tensors stay on disk until used.

    verify: of a folder, as in `load_state_folder`. Raises CheckpointError when a single bit is not
    as it was written, and StateFormatError, before the digest is looked at, for a state of another
    format.
    """
    if path.is_dir():
        return load_state_folder(path, verify)
    state = _read(path, verify=True)
    # First: what other formats hold, and whether they have a digest, nobody knows.
    require_format(path, state)
    require_complete(path, state)
    digest = state.pop("digest", None)
    try:
        intact = digest == content_digest(state)
    except TypeError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not intact:
        raise CheckpointError(f"{path} is damaged: its content does not have the digest it names")
    # The digest only tells that these are the bits written; a diverged run writes NaN faithfully.
    for name, weight in state["weights"].items():
        if not bool(weight.isfinite().all()):
            raise CheckpointError(f"{path} comes from a run that diverged: {name} is not finite")
    return state


def state_digest(path: Path) -> str:
    """Returns the digest that a state names, unverified. Raises CheckpointError."""
    if path.is_dir():
        return read_state_manifest(path).digest
    return str(_read(path, verify=False).get("digest"))


def copy_saved_state(
    state: Mapping[str, Any], source: Path, target: Path, changes: Mapping[str, Any]
) -> None:
    """Writes a verified state to another name, as the file or folder that it is at `source`.

    changes: of its values, of a folder those in the manifest. Raises as `save_state`.
    """
    if source.is_dir():
        copy_folder(source, target, changes)
    else:
        save_state(target, {**state, **changes})


def _read(path: Path, *, verify: bool) -> dict[str, Any]:
    """Reads the dictionary in a state; verify: with its description checked."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = _damaged_part(archive) if verify else None
        if damaged is not None:
            raise CheckpointError(f"{path} is damaged: wrong checksum of its part {damaged}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except Exception as error:
        require_memory_sufficed(path, error)
        # Garbage makes unpicklers raise nearly anything: IndexError, TypeError, struct.error ...
        raise CheckpointError(f"{path} is truncated or damaged: {short_reason(error)}") from error
    if not isinstance(state, dict):
        raise other_format(path, {"format": f"of a {type(state).__name__}"})
    return state


def _damaged_part(archive: zipfile.ZipFile) -> str | None:
    """Returns the part that describes the others, if damaged; a digest covers the tensors."""
    for name in archive.namelist():
        if name.endswith("data.pkl"):
            try:
                archive.read(name)
            except zipfile.BadZipFile:
                return name
    return None


def list_states(folder: Path) -> list[StateFile]:
    """Lists the training states in `folder`, the furthest in the data first, unreadable ones last.

    A folder of parts without a manifest is an unreadable one. Reads only what describes them. Of
    two at the same place the one that ends a run comes first, then the one that ends a mini-epoch.
    """
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if not is_state(path.name) or not path.exists():
            continue
        try:
            content = _outline(path)
            require_format(path, content)
            step = int(content["step"])
            # In tokens, since runs of another batch size may have left states here.
            position = step * int(content.get("tokens_per_step", 1))
            digest = str(content.get("digest", ""))
            run = str(content.get("run") or "")
            found.append(StateFile(path, position, step, digest=digest, run=run))
        except CheckpointError as error:
            other = isinstance(error, StateFormatError)
            found.append(StateFile(path, None, fault=str(error), other_format=other))
        except (KeyError, TypeError, ValueError):
            found.append(StateFile(path, None, fault=f"{path} is no training state: no step"))
    return sorted(found, key=freshness, reverse=True)


def _outline(path: Path) -> Mapping[str, Any]:
    """Returns what tells a state's place: all of a file, or a folder's manifest, unverified."""
    if path.is_dir():
        manifest = read_state_manifest(path)
        return {**manifest.about, "digest": manifest.digest}
    return _read(path, verify=False)


def freshness(state: StateFile) -> tuple[int, int, str]:
    """Returns what is the larger the further a state is, as `list_states` orders them."""
    name = state.path.name
    kind = 2 if name.startswith("rwkv-final") else 0 if name.startswith("rwkv-step-") else 1
    return (-1 if state.position is None else state.position, kind, name)


def resume_candidates(folder: Path) -> list[Candidate]:
    """Lists numbered checkpoints and states in `folder`, newest first; rwkv-init.pth is not one."""
    epochs: dict[int, dict[str, Path]] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        epoch = epoch_of(path.with_suffix(".pth").name)
        # RWKV-LM's ZeRO-3 runs leave folders of the weights' names.
        if not (path.is_file() or (path.is_dir() and path.suffix == STATE_SUFFIX)):
            continue
        if epoch is not None and epoch >= 0 and path.suffix in (".pth", STATE_SUFFIX):
            epochs.setdefault(epoch, {})[path.suffix] = path
    return [
        Candidate(epoch, epochs[epoch].get(".pth"), epochs[epoch].get(STATE_SUFFIX))
        for epoch in sorted(epochs, reverse=True)
    ]
