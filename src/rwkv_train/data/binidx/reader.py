"""Reader of the binidx pair (files: `layout`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rwkv_train.data.binidx.layout import DTYPE_OF_CODE, HEADER, MAGIC, VERSION, bin_path, idx_path
from rwkv_train.data.storage.mapped_file import MappedFile
from rwkv_train.errors import DataError


class Binidx:
    """A checked, memory-mapped binidx pair; opening and reading take O(1) memory.

    prefix      as given
    tokens      tokens in .bin
    dtype       NumPy type of the stored tokens
    item_count  number of items
    sizes       [item_count] int32, tokens per item
    pointers    [item_count] int64, byte offset of each item
    doc_idx     int64, item with which each document starts, the item count last

    Raises DataError when the files are missing, damaged, do not belong together or hold numbers
    that cannot be token ids. Pickling carries the prefix only; the copy maps the files again.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = str(prefix)
        self._index = _open(idx_path(prefix), self.prefix)
        index = self._index.content
        self.dtype, self.item_count, documents = _check_header(index.data, idx_path(prefix))
        n = self.item_count
        start = HEADER.size
        self.sizes = np.frombuffer(index, "<i4", n, start)
        self.pointers = np.frombuffer(index, "<i8", n, start + 4 * n)
        self.doc_idx = np.frombuffer(index, "<i8", documents, start + 12 * n)
        # A map costs no memory until it is read, and the pages are shared by all workers.
        self._file = _open(bin_path(prefix), self.prefix)
        _check_data(self, self._file.size)
        self.tokens = self._file.size // self.dtype.itemsize
        self._data = self._file.content.view(self.dtype)

    def get(self, offset: int, length: int) -> npt.NDArray[np.int64]:
        """Returns tokens offset ... offset + length - 1 of the file as int64; DataError outside."""
        if offset < 0 or length < 0 or offset + length > self.tokens:
            raise DataError(
                f"{bin_path(self.prefix)} holds {self.tokens} tokens; tokens {offset} to "
                f"{offset + length - 1} were asked for"
            )
        self._file.require_whole()
        return self._data[offset : offset + length].astype(np.int64)

    def item(self, number: int) -> npt.NDArray[np.int64]:
        """Returns the tokens of one item as int64."""
        self.require_index()
        return self.get(int(self.pointers[number]) // self.dtype.itemsize, int(self.sizes[number]))

    def require_index(self) -> None:
        """Raises DataError when the index was cut off: before `sizes` and its like are read."""
        self._index.require_whole()

    def __reduce__(self) -> tuple[type[Binidx], tuple[str]]:
        # A map cannot be pickled: RWKV-LM's v4neo and v5 fail here with spawned workers.
        return Binidx, (self.prefix,)


def _open(path: Path, prefix: str) -> MappedFile:
    """Maps a whole file for reading."""
    try:
        return MappedFile(path)
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


def _check_header(index: memoryview, path: Path) -> tuple[np.dtype[Any], int, int]:
    """Returns data type, item count and number of document boundaries of a sound index."""
    # Cheapest first: what is no index at all must not be called a damaged one.
    if bytes(index[: len(MAGIC)]) != MAGIC:
        raise DataError(f"{path} is not a binidx index: it does not begin with MMIDIDX")
    if len(index) < HEADER.size:
        raise DataError(f"{path} is cut off within its header; copy or make the pair again")
    _, version, code, items, documents = HEADER.unpack_from(index)
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
    if len(index) != expected:
        raise DataError(
            f"{path} has {len(index)} bytes but its header ({items} items, {documents} document "
            f"boundaries) needs {expected}; it is cut off or damaged: copy or make the pair again"
        )
    if items == 0:
        raise DataError(f"{path} lists no items; there is nothing to train on")
    return DTYPE_OF_CODE[code], items, documents


def _check_data(pair: Binidx, actual: int) -> None:
    """Compares the size of .bin with the end of the last item, which takes O(1) memory."""
    path, last = bin_path(pair.prefix), int(pair.sizes[-1])
    claimed = int(pair.pointers[-1]) + last * pair.dtype.itemsize
    if pair.pointers[0] != 0 or last < 0 or claimed % pair.dtype.itemsize:
        raise DataError(f"{idx_path(pair.prefix)} is damaged; copy or make the pair again")
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
