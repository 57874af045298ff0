"""Files read by position, of which a process keeps those open that it read last.

A corpus may have more files than a process may have descriptors. They are read by `preadv`, not by
maps: a map reads a disk's whole read-ahead around every random sample (8 MB on some), keeps page
tables of all that was ever read, counts as memory of the process, and kills it where the file is
cut off. On a file in the page cache it is the faster way, too.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rwkv_train.data.storage.recently_used import RecentlyUsed
from rwkv_train.errors import DataError

# Kept open at most, where the process may have that many and more.
_MOST_OPEN = 4096
_FEWEST_OPEN = 8


class StoredFile:
    """The bytes of a file, read-only.

    size: its bytes.  Raises OSError when it cannot be opened, DataError when it is empty. It can
    be pickled, and is the same file there or none: one that was replaced meanwhile is refused.
    """

    __slots__ = ("__weakref__", "_descriptor", "_identity", "path", "size", "was_used")

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self.was_used = False
        self._descriptor: _Descriptor | None = None
        opened = _opened(self.path)
        found = os.fstat(opened.number)
        self.size = found.st_size
        if self.size == 0:
            raise DataError(f"{path} is empty; make the pair again with make_data.py")
        self._identity = (found.st_dev, found.st_ino)
        self._keep(opened)

    def read_into(self, target: Any, offset: int) -> None:
        """Fills `target`, a writable buffer, with the bytes from `offset` on.

        Raises DataError when the file has become shorter, was replaced, or cannot be read.
        """
        descriptor = self._descriptor
        if descriptor is None:
            descriptor = self._reopened()
        else:
            self.was_used = True
        size = target.nbytes
        try:
            count = _read_at(descriptor.number, target, offset)
            # One call may read less: Linux stops at 2 GiB, other systems at a signal.
            while 0 < count < size:
                rest = memoryview(target).cast("B")[count:]
                more = _read_at(descriptor.number, rest, offset + count)
                count = count + more if more else 0
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror}") from error
        if count < size:
            now = os.fstat(descriptor.number).st_size
            raise DataError(_cut_off(self.path, self.size, now))

    def let_go(self) -> None:
        """Closes the file until it is read again."""
        self._descriptor = None

    def __getstate__(self) -> tuple[str, int, tuple[int, int]]:
        return self.path, self.size, self._identity

    def __setstate__(self, state: tuple[str, int, tuple[int, int]]) -> None:
        self.path, self.size, self._identity = state
        self.was_used, self._descriptor = False, None

    def _keep(self, descriptor: _Descriptor) -> None:
        # In this order: what is in the queue can be let go, and nothing else is held.
        self._descriptor = descriptor
        _open_now.add(self)

    def _reopened(self) -> _Descriptor:
        try:
            opened = _opened(self.path)
        except OSError as error:
            raise DataError(
                f"cannot read {self.path} any more: {error.strerror}; copy or make the data again, "
                "then the same command resumes"
            ) from error
        require_same(self.path, os.fstat(opened.number), self._identity, self.size)
        self._keep(opened)
        return opened


def require_same(path: str, now: os.stat_result, identity: tuple[int, int], size: int) -> None:
    """Raises DataError unless the file that is opened again is the one that was opened first.

    identity: its device and inode then; size: its bytes, which may have become more.
    """
    if (now.st_dev, now.st_ino) != identity:
        raise DataError(
            f"{path} was replaced by another file while it was read; start again, so that its "
            "content is checked"
        )
    if now.st_size < size:
        raise DataError(_cut_off(path, size, now.st_size))


class _Descriptor:
    """An open file, which its last user closes."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.number)


def _opened(path: str) -> _Descriptor:
    """Opens a file; where descriptors have run out, others are closed for it."""
    try:
        return _Descriptor(os.open(path, _FLAGS))
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
    _open_now.reduce_to(0)
    return _Descriptor(os.open(path, _FLAGS))


def _cut_off(path: str, before: int, now: int) -> str:
    return (
        f"{path} was cut off from {before} to {now} bytes while it was read; copy or make the data "
        "again, then the same command resumes"
    )


def _read_by_seeking(descriptor: int, target: Any, offset: int) -> int:
    """Reads as `_read_at` does, for one thread at a time."""
    os.lseek(descriptor, offset, os.SEEK_SET)
    content = os.read(descriptor, target.nbytes)
    memoryview(target).cast("B")[: len(content)] = content
    return len(content)


def _preadv(descriptor: int, target: Any, offset: int) -> int:
    return os.preadv(descriptor, [target], offset)


def _most_open() -> int:
    """Returns how many files may stay open: a quarter of what this process may have."""
    if sys.platform == "win32":
        return 128
    import resource

    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed == resource.RLIM_INFINITY:
        return _MOST_OPEN
    return max(_FEWEST_OPEN, min(_MOST_OPEN, allowed // 4))


_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_read_at = _preadv if hasattr(os, "preadv") else _read_by_seeking
# Of the whole process, whatever the number of data sets that it reads.
_open_now = RecentlyUsed(_most_open)
