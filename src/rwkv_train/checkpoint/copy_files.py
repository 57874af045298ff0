"""Copies of files and training states in another folder: complete and verified, or not there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from rwkv_train.checkpoint.digest import file_digest
from rwkv_train.checkpoint.names import MANIFEST
from rwkv_train.checkpoint.resume import load_state, state_digest
from rwkv_train.checkpoint.state_manifest import read_state_manifest, require_parts
from rwkv_train.errors import CheckpointError, short_reason
from rwkv_train.files import new_partial_folder, publish, remove, replacing

# Files of a state that are open at once; systems often allow a process 1024.
_OPEN = 512
# Bytes between two looks at whether to go on.
_CHUNK = 1 << 22


class CopyAbandonedError(Exception):
    """Raised inside a copy that nobody waits for any more."""


def copy_file_verified(source: Path, target: Path, go_on: Callable[[], bool]) -> None:
    """Copies a file, read back from the disk and compared before it gets its name.

    go_on: asked again and again; on False it raises CopyAbandonedError. Raises CheckpointError;
    what was at `target` before is then unchanged.
    """

    def verify(partial: Path, sent: str) -> None:
        if file_digest(partial) != sent:
            raise CheckpointError(f"{target} would not hold what was read from {source}")

    _copy(source, target, go_on, verify)


def copy_state_verified(source: Path, target: Path, digest: str, go_on: Callable[[], bool]) -> None:
    """Copies a state, a file or a folder; it is read back, must be whole and have this digest.

    go_on and errors as in `copy_file_verified`; a state that is damaged itself is named and not
    copied.
    """
    if source.is_dir():
        _copy_folder(source, target, digest, go_on)
        return

    def verify(partial: Path, sent: str) -> None:
        try:
            load_state(partial)
            found = state_digest(partial)
        except CheckpointError:
            # Whose fault it is: the bytes that were read, or what became of them.
            if file_digest(partial) == sent:
                raise CheckpointError(f"{source} is damaged, and was not copied") from None
            raise CheckpointError(f"{target} would not hold what was read from {source}") from None
        if found != digest:
            raise CheckpointError(f"{source} was replaced while it was copied")

    _copy(source, target, go_on, verify)


def _copy_folder(source: Path, target: Path, digest: str, go_on: Callable[[], bool]) -> None:
    try:
        partial = new_partial_folder(target)
        try:
            _copy_parts(source, partial, go_on)
            copied = read_state_manifest(partial)
            if copied.digest != digest:
                raise CheckpointError(f"{source} was replaced while it was copied")
            try:
                require_parts(partial, copied)
            except CheckpointError as error:
                raise CheckpointError(f"{target} would be no copy of {source}: {error}") from error
            publish(partial, target)
        finally:
            remove(partial)
    except OSError as error:
        raise _unable(source, target, error) from error


def _copy_parts(source: Path, folder: Path, go_on: Callable[[], bool]) -> None:
    """Copies the files of a state's folder, its manifest last; raises CheckpointError, OSError."""
    manifest = read_state_manifest(source)
    names = [*manifest.parts, MANIFEST]
    with ExitStack() as stack:
        # Open from the first byte to the last, as many as a process may: the folder may go
        # meanwhile.
        opened = {n: stack.enter_context((source / n).open("rb")) for n in names[-_OPEN:]}
        for name in names:
            original = opened.get(name) or stack.enter_context((source / name).open("rb"))
            with original, (folder / name).open("xb") as copy:
                sent = _stream(original, copy, go_on)
            if name in manifest.parts and sent != manifest.parts[name].sha256:
                raise CheckpointError(f"{source} is damaged in its part {name}, and was not copied")


def _copy(
    source: Path, target: Path, go_on: Callable[[], bool], verify: Callable[[Path, str], None]
) -> None:
    try:
        # Open from the first byte to the last: the name may go meanwhile, the content stays.
        with source.open("rb") as original, replacing(target, over_folder=True) as partial:
            with partial.open("xb") as copy:
                sent = _stream(original, copy, go_on)
            verify(partial, sent)
    except OSError as error:
        raise _unable(source, target, error) from error


def _unable(source: Path, target: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"cannot copy {source.name} to {target.parent}: {short_reason(error)}")


def _stream(original: BinaryIO, copy: BinaryIO, go_on: Callable[[], bool]) -> str:
    """Writes all of `original` to the disk of `copy`; returns its SHA-256."""
    digest = hashlib.sha256()
    while chunk := original.read(_CHUNK):
        if not go_on():
            raise CopyAbandonedError
        digest.update(chunk)
        copy.write(chunk)
    copy.flush()
    os.fsync(copy.fileno())
    if hasattr(os, "posix_fadvise"):
        # Else what is read back would be what memory has, whatever the disk took.
        os.posix_fadvise(copy.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return digest.hexdigest()
