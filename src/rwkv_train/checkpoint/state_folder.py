"""A training state in a folder: a part of every rank, `.metadata`, and a manifest, written last."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from rwkv_train.checkpoint.part_tensors import StateParts
from rwkv_train.checkpoint.state_format import FORMAT, require_complete, require_format
from rwkv_train.checkpoint.state_manifest import (
    PartFile,
    read_state_manifest,
    require_parts,
    write_state_manifest,
)
from rwkv_train.checkpoint.state_parts import METADATA, write_metadata
from rwkv_train.errors import CheckpointError
from rwkv_train.files import new_partial_folder, publish, remove, sync
from rwkv_train.processors import usable_processors

# Of the plain values of a state those that its manifest repeats: what lists of states tell.
_TOLD = ("format", "step", "tokens_per_step", "epoch", "run", "data", "code_version")
_ELEMENTS = 1 << 20


def complete_folder(
    folder: Path,
    parts: Sequence[PartFile],
    names: Sequence[str],
    state: Mapping[str, Any],
    order: Sequence[str],
) -> str:
    """Completes a folder in which all ranks have written their parts; returns its digest.

    parts, names: of the files, by rank; state: plain values, of which the manifest repeats some;
    order: names of the weights as files of them have it. Raises OSError.
    """
    files = dict(zip(names, parts))
    metadata = folder / METADATA
    if not metadata.exists():
        write_metadata(folder, len(names), order)
    files[metadata.name] = PartFile.of(metadata)
    return write_state_manifest(folder, files, about_state(state))


def about_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a manifest tells of a state."""
    keys = (*_TOLD, "weights_digest")
    return {"format": FORMAT, **{key: state[key] for key in keys if key in state}}


def load_state_folder(path: Path) -> dict[str, Any]:
    """Reads and verifies a state in a folder, tensors as `PartTensors`, read when used.

    Raises CheckpointError when a single bit is not as it was written, and StateFormatError, before
    the parts are looked at, for a state of another format.
    """
    manifest = read_state_manifest(path)
    require_format(path, manifest.about)
    require_parts(path, manifest)
    state = read_parts(path) | {
        key: value for key, value in manifest.about.items() if key == "weights_digest"
    }
    require_complete(path, state)
    _require_finite(path, state["weights"])
    return state


def read_parts(folder: Path) -> dict[str, Any]:
    """Reads what the parts in a folder hold, unverified. Raises CheckpointError."""
    parts = StateParts(folder)
    state: dict[str, Any] = {**parts.plain_values(), "weights": {}, "moments": {}}
    for keys, tensors in parts.groups().items():
        if keys == ("weights",):
            state["weights"] = tensors
        elif len(keys) == 2 and keys[0] == "moments":
            state["moments"][keys[1]] = tensors
        else:
            raise CheckpointError(f"{folder} holds tensors behind {keys}, which no state has")
    return state


def copy_folder(source: Path, target: Path, changes: Mapping[str, Any]) -> str:
    """Copies a verified state to another name, with `changes` in its manifest; returns its digest.

    Raises CheckpointError; what was at `target` before is then unchanged.
    """
    manifest = read_state_manifest(source)
    try:
        partial = new_partial_folder(target)
        try:
            for name in manifest.parts:
                shutil.copyfile(source / name, partial / name)
                sync(partial / name)
            digest = write_state_manifest(partial, manifest.parts, {**manifest.about, **changes})
            publish(partial, target)
        finally:
            remove(partial)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error.strerror or error}") from error
    return digest


def _require_finite(path: Path, weights: Mapping[str, Tensor]) -> None:
    with ThreadPoolExecutor(min(usable_processors(), 16)) as pool:
        for name, finite in zip(weights, pool.map(lambda n: is_finite(weights[n]), weights)):
            if not finite:
                raise CheckpointError(
                    f"{path} comes from a run that diverged: {name} is not finite"
                )


def is_finite(values: Tensor) -> bool:
    """Tells whether no value is NaN or infinite, without a copy of large tensors."""
    flat = values.detach().reshape(-1)
    parts = (flat[first : first + _ELEMENTS] for first in range(0, len(flat), _ELEMENTS))
    return all(bool(part.isfinite().all()) for part in parts)
