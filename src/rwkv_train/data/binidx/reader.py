"""Reader of the binidx pair (files: `layout`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from rwkv_train.data.binidx.index_file import IndexArrays, IndexFile
from rwkv_train.data.binidx.layout import BIN_ENDING, IDX_ENDING, bin_path
from rwkv_train.data.storage.open_files import StoredFile
from rwkv_train.errors import DataError

_File = TypeVar("_File", StoredFile, IndexFile)


class Binidx:
    """A checked binidx pair; opening and reading take O(1) memory and a few reads.

    prefix      as given
    tokens      tokens in .bin
    dtype       NumPy type of the stored tokens
    item_count  number of items

    Raises DataError when the files are missing, damaged, do not belong together or hold numbers
    that cannot be token ids. There may be any number of pairs: each opens its files again when it
    needs them. So does a copy by pickling; a file that was replaced meanwhile is refused.
    """

    __slots__ = ("_index", "dtype", "file", "item_count", "prefix", "tokens")

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = str(prefix)
        self._index = _opened(IndexFile, f"{self.prefix}{IDX_ENDING}", self.prefix)
        self.dtype, self.item_count = self._index.dtype, self._index.item_count
        self.file = _opened(StoredFile, f"{self.prefix}{BIN_ENDING}", self.prefix)
        _check_data(self.prefix, self.file.size, self._index.claimed_bytes)
        self.tokens = self.file.size // self.dtype.itemsize

    @property
    def says_documents(self) -> bool:
        """True where the ends of `doc_idx` are right, all that can be told without a scan."""
        return self._index.says_documents

    @property
    def boundary_count(self) -> int:
        """Length of `doc_idx`."""
        return self._index.boundary_count

    @property
    def index(self) -> IndexArrays:
        """The lists of the index, mapped: several at once, for who needs them often."""
        return self._index.arrays()

    @property
    def sizes(self) -> npt.NDArray[np.int32]:
        """Tokens per item, [item_count]."""
        return self.index.sizes

    @property
    def pointers(self) -> npt.NDArray[np.int64]:
        """Byte offset of each item, [item_count]."""
        return self.index.pointers

    @property
    def doc_idx(self) -> npt.NDArray[np.int64]:
        """The item with which each document starts, and the item count last."""
        return self.index.doc_idx

    def get(self, offset: int, length: int) -> npt.NDArray[np.int64]:
        """Returns tokens offset ... offset + length - 1 of the file as int64; DataError outside."""
        if offset < 0 or length < 0 or offset + length > self.tokens:
            raise DataError(
                f"{bin_path(self.prefix)} holds {self.tokens} tokens; tokens {offset} to "
                f"{offset + length - 1} were asked for"
            )
        stored = np.empty(length, self.dtype)
        self.file.read_into(stored, offset * self.dtype.itemsize)
        return stored.astype(np.int64)

    def item(self, number: int) -> npt.NDArray[np.int64]:
        """Returns the tokens of one item as int64."""
        index = self.index
        index.file.require_whole()
        return self.get(
            int(index.pointers[number]) // self.dtype.itemsize, int(index.sizes[number])
        )

    def require_index(self) -> None:
        """Raises DataError when the index was cut off: before `sizes` and its like are read."""
        self.index.file.require_whole()


def _opened(kind: Callable[[str], _File], path: str, prefix: str) -> _File:
    """Opens one file of a pair."""
    try:
        return kind(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; {_prefix_advice(prefix)}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _prefix_advice(prefix: str) -> str:
    path = Path(prefix)
    if path.is_dir():
        pairs = sorted(path.glob("*.idx"))
        inside = f"; in the folder {prefix} is {pairs[0].with_suffix('')}" if pairs else ""
        return f"name a pair by its common prefix{inside}"
    if path.is_file() and path.suffix not in (".bin", ".idx"):
        with path.open("rb") as file:
            is_array = file.read(6) == b"\x93NUMPY"
        if is_array:
            return f"{prefix} is an array of NumPy: read it with --data_type numpy"
        return (
            f"{prefix} is a file and no binidx data; of text make some with make_data.py {prefix} "
            "REPEATS CTX_LEN"
        )
    stem, _, ending = prefix.rpartition(".")
    if ending in ("bin", "idx"):
        return f"give the pair's common prefix, {stem}"
    return f"{prefix} must be the common prefix of a .bin and an .idx file (see make_data.py)"


def _check_data(prefix: str, actual: int, claimed: int) -> None:
    """Compares the size of .bin with the end of the last item, in bytes."""
    path = bin_path(prefix)
    if actual < claimed:
        raise DataError(
            f"{path} has {actual} bytes but its index needs {claimed}; a copy or a write was "
            "interrupted: copy or make the pair again"
        )
    if actual > claimed:
        raise DataError(
            f"{path} has {actual} bytes but its index accounts for {claimed}; they do not belong "
            f"together: make the pair again, or cut the rest off with "
            f"`truncate --size {claimed} {path}` if you know that the index is right"
        )
