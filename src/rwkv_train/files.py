"""Writing a file so that its name never stands for something incomplete."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rwkv_train.errors import ConfigError


def expand_home(path: str) -> str:
    """Returns a path with a leading ~ or ~NAME replaced by that home folder, others as they are.

    A shell does so for a word's beginning only: not behind `--flag=`, nor in a file. Raises
    ConfigError for a user that does not exist, whose name would become that of a folder.
    """
    if not path.startswith("~"):
        return path
    # Path.expanduser would also tidy the rest, and a prefix may end in a slash.
    expanded = os.path.expanduser(path)  # noqa: PTH111
    if expanded.startswith("~") and not Path(path).exists():
        user = path.partition("/")[0]
        raise ConfigError(
            f"{path}: the home folder {user} is not known; write ./{path} for a file of that name"
        )
    return expanded


# Folder -> what is asked before a file in it gets its name.
_GUARDS: dict[Path, Callable[[], None]] = {}
# In containers every program may be process 1.
_SOURCE = secrets.token_hex(4)


def guard(folder: Path, check: Callable[[], None]) -> None:
    """Makes `replacing` call `check` before it names a file in `folder`; what it raises passes."""
    _GUARDS[folder.resolve()] = check


def unguard(folder: Path) -> None:
    """Ends what `guard` began."""
    _GUARDS.pop(folder.resolve(), None)


def partial_path(path: Path) -> Path:
    """Returns a temporary name next to `path`, which no other process shares."""
    return path.with_name(f"{path.name}.{os.getpid()}-{_SOURCE}.partial")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path; what the block writes there takes the place of `path`.

    `path` afterwards holds the complete new content, flushed to disk, or after any failure what
    it held before, and nothing is left behind. Raises OSError and whatever the block raises.
    """
    partial = partial_path(path)
    try:
        yield partial
        # Before the rename: else a crash could leave the new name on blocks never written.
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        if (check := _GUARDS.get(path.parent.resolve())) is not None:
            check()
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        # Also after an interrupt; once renamed there is nothing left to remove.
        # A folder that cannot be written, or is no folder, holds nothing to remove either.
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a small file: afterwards `path` holds all of `content` or what it held before."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def remove_partial_files(folder: Path) -> None:
    """Removes what writers left in `folder` that were killed; no other run may be using it."""
    for path in folder.glob("*.partial"):
        with suppress(OSError):
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes earlier renames in `folder` durable where that is possible.

    Windows and some network file systems cannot flush a folder; the files are complete anyway.
    """
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
