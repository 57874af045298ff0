"""Writing data files; what cannot be written is a DataError."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rwkv_train.errors import DataError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes the folder of `path` for a block that writes it; DataError when either is impossible.

    Around `files.write_atomically`, or whatever else raises an OSError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error


def create_file(path: Path) -> BinaryIO:
    """Opens a new file for writing bytes, with its folder; DataError when that is impossible."""
    with writing(path):
        return path.open("wb")


def close_durably(file: BinaryIO) -> None:
    """Forces a file to disk and closes it."""
    # Before the rename that publishes the file: after a crash its name could otherwise stand for
    # missing data. flush() first, because fsync() knows only what the system was given.
    file.flush()
    os.fsync(file.fileno())
    file.close()
