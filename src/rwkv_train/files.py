"""Writing a file, or a folder, so that its name never stands for something incomplete."""

from __future__ import annotations

import os
import secrets
import shutil
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
_PARTIAL, _REPLACED = ".partial", ".replaced"
# In containers every program may be process 1.
_SOURCE = secrets.token_hex(4)


def guard(folder: Path, check: Callable[[], None]) -> None:
    """Asks `check` before anything in `folder` gets its name; what it raises passes."""
    _GUARDS[folder.resolve()] = check


def unguard(folder: Path) -> None:
    """Ends what `guard` began."""
    _GUARDS.pop(folder.resolve(), None)


def partial_path(path: Path) -> Path:
    """Returns a temporary name next to `path`, which no other process shares."""
    return path.with_name(f"{path.name}.{os.getpid()}-{_SOURCE}{_PARTIAL}")


def new_partial_folder(path: Path) -> Path:
    """Makes the folder of the temporary name of `path`, empty, and returns it. Raises OSError."""
    partial = partial_path(path)
    remove(partial)
    partial.mkdir()
    return partial


@contextmanager
def replacing(path: Path, *, over_folder: bool = False) -> Iterator[Path]:
    """Yields a temporary path; what the block writes there takes the place of `path`.

    `path` afterwards holds the complete new content, flushed to disk, or after any failure what
    it held before, and nothing is left behind. over_folder: also where `path` is a folder, which
    is an OSError otherwise. Raises OSError and whatever the block raises.
    """
    partial = partial_path(path)
    try:
        yield partial
        # Before the rename: else a crash could leave the new name on blocks never written.
        sync(partial)
        if over_folder and path.is_dir():
            publish(partial, path)
        else:
            _check(path)
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


def publish(partial: Path, path: Path) -> None:
    """Gives a complete file or folder its name, in the place of whatever has it. Raises OSError.

    Its content is on the disk already. No system renames a folder over another one: what is there
    is set aside first, and `restore_replaced` brings it back after a crash between the renames.
    """
    sync_folder(partial)
    _check(path)
    aside = None
    if os.path.lexists(path):
        aside = path.with_name(f"{path.name}.{os.getpid()}-{_SOURCE}{_REPLACED}")
        path.rename(aside)
    try:
        partial.rename(path)
    except BaseException:
        if aside is not None:
            aside.rename(path)
        raise
    sync_folder(path.parent)
    if aside is not None:
        with suppress(OSError):
            remove(aside)


def remove(path: Path) -> None:
    """Removes a file, a link or a folder with all in it; nothing where there is none.

    A folder loses its name first: no name stands for half of one. Raises OSError.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    doomed = path if path.suffix in (_PARTIAL, _REPLACED) else partial_path(path)
    if doomed != path:
        path.rename(doomed)
    shutil.rmtree(doomed)


def restore_replaced(folder: Path) -> None:
    """Brings back what `publish` had set aside when its process was killed; removes the rest.

    No other run may be using the folder.
    """
    for aside in folder.glob(f"*{_REPLACED}"):
        path = aside.with_name(aside.name.rpartition(".")[0].rpartition(".")[0])
        with suppress(OSError):
            if os.path.lexists(path):
                remove(aside)
            else:
                aside.rename(path)


def remove_partial_files(folder: Path) -> None:
    """Removes what writers left in `folder` that were killed; no other run may be using it."""
    for path in folder.glob(f"*{_PARTIAL}"):
        with suppress(OSError):
            remove(path)


def sync(path: Path) -> None:
    """Makes a file's content durable. Raises OSError."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


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


def _check(path: Path) -> None:
    """Calls what `guard` was given for the folder of `path`."""
    if (check := _GUARDS.get(path.parent.resolve())) is not None:
        check()
