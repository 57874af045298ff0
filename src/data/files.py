"""Writing files so that nothing half-written is ever found under its final name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from src.errors import DataError


def partial_path(path: Path) -> Path:
    """Temporary name beside `path`; it holds the process id, so that two runs never share one."""
    return path.with_name(f"{path.name}.{os.getpid()}.partial")


def create(path: Path) -> BinaryIO:
    """Opens a new file for writing bytes, with its folder; DataError when that is impossible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error


def close_durably(file: BinaryIO) -> None:
    """Forces a file to disk and closes it."""
    file.flush()
    os.fsync(file.fileno())
    file.close()


def sync_folder(folder: Path) -> None:
    """Makes earlier renames in the folder durable, where the system lets a folder be opened."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a small file: afterwards `path` holds all of `content` or what it held before."""
    partial = partial_path(path)
    try:
        file = create(partial)
        file.write(content)
        close_durably(file)
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)
