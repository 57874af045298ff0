"""Lets one process build while others wait for it, and tells the user which."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

# Folders next to the lock that a builder who died has left behind.
WORK_PREFIX = "work-"


@contextmanager
def held_lock(path: Path, title: str) -> Iterator[None]:
    """Holds the lock of a build; prints whom it waits for, and who died while building `title`."""
    # Absent on Windows, which the caller has sorted out.
    import fcntl

    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for {_owner(file)}, which builds the {title}")
            fcntl.flock(file, fcntl.LOCK_EX)
        # The system released the lock, but only a living owner wipes its name.
        owner = _owner(file)
        if owner:
            say(f"{owner} died while it built the {title}; its lock is removed")
        for left_over in path.parent.glob(f"{WORK_PREFIX}*"):
            shutil.rmtree(left_over, ignore_errors=True)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def lock_holder(path: Path) -> tuple[str, bool] | None:
    """Returns whom a lock file names and whether that process still holds it; None: nobody.

    Raises OSError where the file cannot be read.
    """
    import fcntl

    with path.open("r", encoding="utf-8", errors="replace") as file:
        owner = _owner(file)
        if not owner:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return owner, True
        # Given back when the file is closed.
        return owner, False


def say(text: str) -> None:
    """Prints a line for the user while libraries are built."""
    print(text, file=sys.stderr, flush=True)


def _owner(file: TextIO) -> str:
    file.seek(0)
    return file.read().strip()
