"""Files mapped for reading: without a descriptor each, and with an error where they are cut off.

Python's own maps keep a descriptor, of which a process has some hundred and a corpus may have more
shards. And reading a map beyond the end of a file that was truncated kills the process silently.
Tokens are read otherwise (`open_files` says why); what is searched by bisection is mapped.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rwkv_train.errors import DataError


class FileSize:
    """Remembers how long a file is, and notices that it has become shorter."""

    def __init__(self, path: Path, found: os.stat_result) -> None:
        self._name = str(path)
        self._bytes = found.st_size
        self._file = (found.st_dev, found.st_ino)

    def require_whole(self) -> None:
        """Raises DataError when the file that was opened is shorter than it was."""
        try:
            now = os.stat(self._name)  # noqa: PTH116, called for every sample
        except OSError:
            # A removed file keeps its content for those who have it open.
            return
        # So does one that another has replaced.
        if now.st_size < self._bytes and (now.st_dev, now.st_ino) == self._file:
            raise DataError(
                f"{self._name} was cut off from {self._bytes} to {now.st_size} bytes while it was "
                "read; copy or make the data again, then the same command resumes"
            )


class MappedFile:
    """The bytes of a whole file, read-only.

    content: [bytes] uint8; views of it stay valid after this object. Raises OSError, or DataError
    when the file is empty.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            self.size = found.st_size
            if self.size == 0:
                raise DataError(f"{path} is empty; make the pair again with make_data.py")
            self.content = _map(file.fileno(), self.size)
        self._file_size = FileSize(path, found)

    def require_whole(self) -> None:
        """Raises DataError when the file was cut off: to be called before its bytes are read."""
        self._file_size.require_whole()


def _map(descriptor: int, size: int) -> npt.NDArray[np.uint8]:
    if sys.platform == "win32":
        return np.frombuffer(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ), np.uint8)
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    address = library.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    memory: Any = (ctypes.c_ubyte * size).from_address(address)
    # When the last view of it is gone; not at exit, where threads may still read.
    weakref.finalize(memory, library.munmap, address, size).atexit = False
    content = np.frombuffer(memory, np.uint8)
    content.flags.writeable = False
    return content
