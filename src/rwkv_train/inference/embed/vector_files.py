"""Vectors on disk, in memory for some of them at a time: .npy, and JSON lines."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import orjson

from rwkv_train.errors import DataError

Rows = npt.NDArray[np.float32]
# Numbers in memory at a time.
_NUMBERS = 1 << 22


class RowSpool:
    """Rows of one size in a file: written in order, then read or replaced, block by block.

    Not a mapped file: a full disk would end the program without a word.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        """Takes a file that is open for reading and writing; rows begin where it stands."""
        self._file = file
        self._begin = file.tell()
        self._size = size
        self.count = 0

    def append(self, rows: Rows) -> None:
        """Adds rows, [n, size], behind the others."""
        self._file.write(np.ascontiguousarray(rows, "<f4").tobytes())
        self.count += len(rows)

    def blocks(self) -> Iterator[tuple[int, Rows]]:
        """Yields the number of a block's first row, and the block [n, size]."""
        height = max(1, _NUMBERS // self._size)
        for first in range(0, self.count, height):
            rows = min(height, self.count - first)
            self._file.seek(self._place(first))
            content = self._file.read(4 * self._size * rows)
            yield first, np.frombuffer(content, "<f4").reshape(rows, self._size).copy()

    def replace(self, first: int, rows: Rows) -> None:
        """Writes rows in the place of those from `first` on."""
        self._file.seek(self._place(first))
        self._file.write(np.ascontiguousarray(rows, "<f4").tobytes())

    def _place(self, row: int) -> int:
        return self._begin + 4 * self._size * row


def write_header(file: BinaryIO, count: int, size: int) -> None:
    """Writes what an .npy file of [count, size] numbers in fp32 begins with."""
    described = {"descr": "<f4", "fortran_order": False, "shape": (count, size)}
    np.lib.format.write_array_header_1_0(file, described)


def vector_lines(ids: Iterable[Any], spool: RowSpool) -> Iterator[bytes]:
    """Yields a line of JSON for every row of the spool, with its id, which is any value of JSON."""
    names = iter(ids)
    for _, rows in spool.blocks():
        for row, name in zip(rows, names):
            # Each by the library that can: numbers in their shortest spelling, odd strings.
            numbers = orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)
            yield b'{"id": %s, "embedding": %s}\n' % (json.dumps(name).encode(), numbers)


def read_vector(path: Path, size: int) -> Rows:
    """Returns the vector [size] in an .npy file; DataError, which says why, for another one."""
    try:
        found = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except OSError as error:
        raise DataError(f"--center {path} cannot be read: {error.strerror}") from error
    except (ValueError, EOFError) as error:
        raise DataError(
            f"--center {path} is no array; give 'compute', or an .npy file with one vector"
        ) from error
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu" or found.size != size:
        told = f"{found.dtype} {list(found.shape)}" if isinstance(found, np.ndarray) else "no array"
        raise DataError(f"--center {path} holds {told}; expected one vector of {size} numbers")
    vector: Rows = found.reshape(size).astype(np.float32)
    if not np.isfinite(vector).all():
        raise DataError(f"--center {path} holds numbers that are not finite")
    return vector


def array_content(vector: Rows) -> bytes:
    """Returns the content of an .npy file with this array."""
    buffer = io.BytesIO()
    np.save(buffer, vector)
    return buffer.getvalue()
