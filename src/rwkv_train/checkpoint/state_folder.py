"""A training state in a folder: a part of every rank, `.metadata`, and a manifest, written last."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

from rwkv_train.checkpoint.finite import is_finite
from rwkv_train.checkpoint.names import PART_LIST
from rwkv_train.checkpoint.part_tensors import StateParts
from rwkv_train.checkpoint.state_format import FORMAT, require_complete, require_format
from rwkv_train.checkpoint.state_manifest import (
    PartFile,
    StateManifest,
    read_state_manifest,
    reading_threads,
    require_parts,
    write_state_manifest,
)
from rwkv_train.checkpoint.state_parts import part_name, write_metadata
from rwkv_train.errors import CheckpointError
from rwkv_train.files import new_partial_folder, publish, remove, sync

VerifyParts: TypeAlias = Callable[[Path, StateManifest], None]

# Of the plain values of a state those that its manifest repeats: what lists of states tell.
_TOLD = ("step", "tokens_per_step", "epoch", "run", "data", "code_version")
# Of those that are known only when the parts are written: the digest of the weights beside them,
# and the record of the run's files.
_LATE = ("weights_digest", "written")


def list_parts(folder: Path, ranks: int, order: Sequence[str]) -> None:
    """Makes what the ranks have written into `folder` readable; nothing if it is. Raises OSError.

    order: names of entries that come first.
    """
    if not (folder / PART_LIST).exists():
        write_metadata(folder, ranks, order)


def complete_folder(folder: Path, parts: Sequence[PartFile], state: Mapping[str, Any]) -> str:
    """Writes the manifest of a folder whose parts are listed; returns its digest. Raises OSError.

    parts: by rank; state: plain values, of which the manifest repeats some and has others alone.
    """
    files = {part_name(rank): part for rank, part in enumerate(parts)}
    files[PART_LIST] = PartFile.of(folder / PART_LIST)
    about = {key: state[key] for key in (*_TOLD, *_LATE) if key in state}
    return write_state_manifest(folder, files, {"format": FORMAT, **about})


def load_state_folder(path: Path, verify: VerifyParts | None = None) -> dict[str, Any]:
    """Reads and verifies a state in a folder, tensors as `PartTensors`, read when used.

    verify: does what `verify_parts` does with all parts, which is the default. Raises
    CheckpointError when a single bit is not as it was written, and StateFormatError, before the
    parts are looked at, for a state of another format.
    """
    manifest = read_state_manifest(path)
    require_format(path, manifest.about)
    (verify or verify_parts)(path, manifest)
    state = read_parts(path)
    state |= {key: manifest.about[key] for key in _LATE if key in manifest.about}
    state["format"] = manifest.about["format"]
    require_complete(path, state)
    return state


def verify_parts(
    folder: Path,
    manifest: StateManifest,
    names: Sequence[str] | None = None,
    threads: int | None = None,
) -> None:
    """Raises CheckpointError unless parts are as written and hold no weight that is not finite.

    names, threads: as in `require_parts`.
    """
    require_parts(folder, manifest, names, threads)
    entries = StateParts(folder).entries("weights")

    def fault(part: str) -> str | None:
        found = (read() for read in entries.get(part, ()))
        return next((name for name, values in found if not is_finite(values)), None)

    with ThreadPoolExecutor(threads or reading_threads()) as pool:
        for name in pool.map(fault, manifest.parts if names is None else names):
            if name is not None:
                raise CheckpointError(
                    f"{folder} comes from a run that diverged: {name} is not finite"
                )


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
