"""manifest.json of a state in a folder: its parts with sizes and digests, its run and its place.

It is written last. A folder without one is what a save has left that did not end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rwkv_train.checkpoint.digest import file_digest
from rwkv_train.checkpoint.names import MANIFEST
from rwkv_train.errors import CheckpointError
from rwkv_train.files import write_atomically
from rwkv_train.processors import usable_processors

# More threads than these read no disk faster.
_MOST_THREADS = 16


@dataclass(frozen=True)
class PartFile:
    """A file of a state: its size in bytes, its SHA-256 in hex."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> PartFile:
        """Returns what describes the file at `path`, which is read. Raises OSError."""
        return cls(path.stat().st_size, file_digest(path))


@dataclass(frozen=True)
class StateManifest:
    """The words of a folder about its state.

    about: plain values, among them the step, the run, and the digest of the weights beside it.
    digest: of all this; it names the state.
    """

    parts: Mapping[str, PartFile]
    about: Mapping[str, Any]
    digest: str


def write_state_manifest(
    folder: Path, parts: Mapping[str, PartFile], about: Mapping[str, Any]
) -> str:
    """Writes manifest.json into `folder`, by renaming; returns its digest. Raises OSError."""
    told = {"about": dict(about), "parts": {name: asdict(part) for name, part in parts.items()}}
    digest = _digest(told)
    write_atomically(folder / MANIFEST, (json.dumps({**told, "digest": digest}, indent=1)).encode())
    return digest


def read_state_manifest(folder: Path) -> StateManifest:
    """Reads manifest.json of a state's folder and compares it with its own digest.

    Raises CheckpointError.
    """
    path = folder / MANIFEST
    try:
        told = json.loads(path.read_bytes())
        digest = told.pop("digest")
        parts = {str(name): PartFile(**part) for name, part in told["parts"].items()}
        manifest = StateManifest(parts, dict(told["about"]), str(digest))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} is incomplete: it has no {MANIFEST}, which is written when all parts are"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} is truncated or damaged") from error
    if manifest.digest != _digest(told):
        raise CheckpointError(f"{path} is damaged: it does not have the digest it names")
    if any(Path(name).name != name for name in parts):
        raise CheckpointError(f"{path} names files outside its folder")
    return manifest


def require_parts(
    folder: Path,
    manifest: StateManifest,
    names: Sequence[str] | None = None,
    threads: int | None = None,
) -> None:
    """Reads parts, several at once; raises CheckpointError unless they are as written.

    names: of which, None: all; threads: how many at once, None: as many as this machine can.
    """
    parts = {name: manifest.parts[name] for name in (manifest.parts if names is None else names)}
    # Sizes first: what is torn or gone is known without reading the rest.
    for name, part in parts.items():
        _require_size(folder, name, part.size)
    with ThreadPoolExecutor(threads or reading_threads()) as pool:
        found = dict(zip(parts, pool.map(lambda name: _sha256(folder / name), parts)))
    for name, part in parts.items():
        if found[name] != part.sha256:
            raise CheckpointError(
                f"{folder} is damaged: its part {name} is not the one that was saved with the "
                "others; its content does not have the digest in the manifest"
            )


def reading_threads(processes: int = 1) -> int:
    """Returns how many parts one of so many processes of a machine reads at once."""
    return min(max(1, usable_processors() // processes), _MOST_THREADS)


def _require_size(folder: Path, name: str, expected: int) -> None:
    path = folder / name
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is incomplete: its part {name} is gone") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if size != expected:
        raise CheckpointError(
            f"{folder} is damaged: its part {name} has {size:,} bytes instead of {expected:,}"
        )


def _sha256(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _digest(told: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
