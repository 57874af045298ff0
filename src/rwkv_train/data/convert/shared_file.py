"""An unnamed file that the main process and its workers use together."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import BinaryIO, Protocol


class _Duplicate(Protocol):
    """A descriptor on its way to another process, as `DupFd` makes it."""

    def detach(self) -> int: ...


class SharedFile:
    """Bytes on disk without a name; they vanish with the last process that uses them.

    Worker processes get it as an argument of theirs: it can be pickled while one is started.
    Reading and writing say where, so that no process moves another's position.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Closed by close(), or by the end of the process.
        self.file: BinaryIO = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115

    def __reduce__(self) -> tuple[Callable[..., SharedFile], tuple[_Duplicate]]:
        # Only the descriptor can lead to a file without a name.
        return _reopened, (DupFd(self.file.fileno()),)

    def write(self, content: bytes | memoryview, offset: int) -> None:
        """Writes bytes from `offset` on; raises OSError when they cannot be written."""
        # One call may write less than it was given: Linux stops at 2 GiB.
        left = memoryview(content).cast("B")
        while len(left):
            count = os.pwrite(self.file.fileno(), left, offset)
            left, offset = left[count:], offset + count

    def read(self, length: int, offset: int) -> bytes:
        """Returns `length` bytes from `offset` on, all of which were written before."""
        content = os.pread(self.file.fileno(), length, offset)
        assert len(content) == length, "reading what was never written"
        return content

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fills `target` with the bytes from `offset` on, all of which were written before."""
        while len(target):
            # One call may read less than it was asked for: Linux stops at 2 GiB.
            count = os.preadv(self.file.fileno(), [target], offset)
            assert count, "reading what was never written"
            target, offset = target[count:], offset + count

    def close(self) -> None:
        """Frees the disk space once no other process has it open."""
        self.file.close()


def _reopened(descriptor: _Duplicate) -> SharedFile:
    # Past the constructor, which would make a file of its own.
    shared = SharedFile.__new__(SharedFile)
    shared.file = open(descriptor.detach(), "r+b", buffering=0)  # noqa: SIM115, PTH123
    return shared
