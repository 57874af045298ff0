"""Writing a file so that its name never stands for something incomplete."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Calls `write` with a file beside `path`, flushes it to disk and renames it to `path`.

    `path` afterwards holds the complete new content or, after any failure, what it held before.
    Raises OSError and whatever `write` raises; nothing is left behind then.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with beside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        flush_folder(path.parent)
    finally:
        # Also after an interrupt; once renamed there is nothing left to remove.
        remove_quietly(beside)


def flush_folder(folder: Path) -> None:
    """Puts renames and removals in `folder` on disk."""
    # Windows cannot open folders.
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_quietly(path: Path) -> None:
    """Removes `path` if it is there and can be removed."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        # The folder is not writable or is not a folder: then nothing was written either.
        return
