"""The .idx of a pair (`layout` draws it): checked by some bytes, mapped where all is asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from rwkv_train.data.binidx.layout import DTYPE_OF_CODE, HEADER, MAGIC, VERSION
from rwkv_train.data.storage.mapped_file import MappedFile
from rwkv_train.data.storage.open_files import require_same
from rwkv_train.data.storage.recently_used import RecentlyUsed
from rwkv_train.errors import DataError

# Linux counts the maps of a process, and allows 65530 of all kinds.
_MOST_MAPPED = 1024


class IndexArrays(NamedTuple):
    """The lists of an index: int32 sizes, int64 pointers and document starts (`layout`).

    file: keeps the map, and knows whether the file was cut off.
    """

    sizes: npt.NDArray[np.int32]
    pointers: npt.NDArray[np.int64]
    doc_idx: npt.NDArray[np.int64]
    file: MappedFile


class IndexFile:
    """A checked index, of which header and ends are read.

    dtype: of the tokens; item_count, boundary_count: lengths of its lists.
    claimed_bytes: of the .bin, up to the end of the last item; says_documents: whether the document
    starts begin with the first item and end behind the last.
    Raises OSError, and DataError when it is damaged or lists what cannot be token ids.
    """

    __slots__ = (
        *("__weakref__", "_arrays", "_identity", "_size", "boundary_count", "claimed_bytes"),
        *("dtype", "item_count", "path", "says_documents", "was_used"),
    )

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self.was_used = False
        self._arrays: IndexArrays | None = None
        # Unbuffered: a buffer would read 8 KB at each of three places.
        with open(self.path, "rb", buffering=0) as file:  # noqa: PTH123
            found = os.fstat(file.fileno())
            self._size = found.st_size
            self._identity = (found.st_dev, found.st_ino)
            header = _checked_header(file.read(HEADER.size), self._size, self.path)
            self.dtype, self.item_count, self.boundary_count = header
            self.claimed_bytes = self._claimed_bytes(file)
            self.says_documents = self._says_documents(file)

    def arrays(self) -> IndexArrays:
        """Returns the lists, mapped; DataError when the file is not what was checked."""
        arrays = self._arrays
        if arrays is None:
            return self._mapped()
        self.was_used = True
        return arrays

    def let_go(self) -> None:
        """Ends the map, once nobody uses the lists any more, until they are asked for again."""
        self._arrays = None

    def __getstate__(self) -> dict[str, Any]:
        kept = set(self.__slots__) - {"__weakref__", "_arrays", "was_used"}
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self.was_used, self._arrays = False, None

    def _claimed_bytes(self, file: BinaryIO | Any) -> int:
        """Reads where the .bin ends; DataError when that cannot be."""
        n, width = self.item_count, self.dtype.itemsize
        pointers = HEADER.size + 4 * n
        last_size = _number(file, pointers - 4, 4)
        first, last = _number(file, pointers, 8), _number(file, pointers + 8 * (n - 1), 8)
        claimed = last + last_size * width
        if first != 0 or last_size < 0 or claimed % width:
            raise DataError(f"{self.path} is damaged; copy or make the pair again")
        return claimed

    def _says_documents(self, file: BinaryIO | Any) -> bool:
        count, start = self.boundary_count, HEADER.size + 12 * self.item_count
        if count < 2:
            return False
        ends = _number(file, start, 8), _number(file, start + 8 * (count - 1), 8)
        return ends == (0, self.item_count)

    def _mapped(self) -> IndexArrays:
        path = Path(self.path)
        try:
            require_same(self.path, path.stat(), self._identity, self._size)
            file = MappedFile(path)
        except OSError as error:
            raise DataError(
                f"cannot read {self.path} any more: {error.strerror}; copy or make the data again, "
                "then the same command resumes"
            ) from error
        n, start = self.item_count, HEADER.size
        arrays = IndexArrays(
            np.frombuffer(file.content, "<i4", n, start),
            np.frombuffer(file.content, "<i8", n, start + 4 * n),
            np.frombuffer(file.content, "<i8", self.boundary_count, start + 12 * n),
            file,
        )
        # In this order: what is in the queue can be let go, and nothing else is held.
        self._arrays = arrays
        _mapped_now.add(self)
        return arrays


def _number(file: BinaryIO | Any, offset: int, width: int) -> int:
    file.seek(offset)
    return int.from_bytes(file.read(width), "little", signed=True)


def _checked_header(header: bytes, size: int, path: str) -> tuple[np.dtype[Any], int, int]:
    """Returns data type, item count and number of document boundaries of a sound index.

    header: its first bytes; size: of the whole.
    """
    # Cheapest first: what is no index at all must not be called a damaged one.
    if size == 0:
        raise DataError(f"{path} is empty; make the pair again with make_data.py")
    if header[: len(MAGIC)] != MAGIC:
        raise DataError(f"{path} is not a binidx index: it does not begin with MMIDIDX")
    if len(header) < HEADER.size:
        raise DataError(f"{path} is cut off within its header; copy or make the pair again")
    _, version, code, items, documents = HEADER.unpack(header)
    if version != VERSION:
        raise DataError(f"{path} has index version {version}; only version {VERSION} can be read")
    if code not in DTYPE_OF_CODE:
        raise DataError(f"{path} has the unknown data type code {code}; known are 1 to 8")
    if DTYPE_OF_CODE[code].kind == "f":
        raise DataError(
            f"{path} holds {DTYPE_OF_CODE[code].name} values (code {code}); token ids must be "
            "integers, because a float cannot number a row of the embedding: make the pair again"
        )
    expected = HEADER.size + 12 * items + 8 * documents
    if size != expected:
        raise DataError(
            f"{path} has {size} bytes but its header ({items} items, {documents} document "
            f"boundaries) needs {expected}; it is cut off or damaged: copy or make the pair again"
        )
    if items == 0:
        raise DataError(f"{path} lists no items; there is nothing to train on")
    return DTYPE_OF_CODE[code], items, documents


# Of the whole process, whatever the number of data sets that it reads.
_mapped_now = RecentlyUsed(lambda: _MOST_MAPPED)
