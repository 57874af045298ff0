"""Writing data files; what cannot be written is a DataError."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from rwkv_train import files
from rwkv_train.errors import DataError


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


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a small file completely or not at all, with its folder; DataError if it cannot."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(path, content)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error
