"""Arrays of tokens that samples are cut from: the binidx pair and RWKV-LM's small formats.

A source has `tokens` (how many there are) and `get(offset, length) -> int64 array`. The character
formats also have `characters`, the vocabulary they derived from the text: id -> character.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rwkv_train.data.binidx.layout import idx_path
from rwkv_train.data.binidx.manifest import manifest_path, manifest_prefix, read_manifest
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.samples.sharded_tokens import ShardedTokens, check_inside, open_listed
from rwkv_train.data.storage.mapped_file import FileSize
from rwkv_train.errors import DataError

# Reads a file as one flat array; a module\'s function, so that sources can be pickled.
Load = Callable[[str], npt.NDArray[Any]]


class TokenSource(Protocol):
    """Tokens by number, as a dataset reads them."""

    @property
    def tokens(self) -> int:
        """Number of tokens."""

    def get(self, offset: int, length: int) -> npt.NDArray[np.int64]:
        """Returns tokens offset ... offset + length - 1."""


class ArraySource:
    """Tokens of one flat array; a mapped file is mapped again after pickling, not copied."""

    def __init__(self, name: str, load: Load) -> None:
        self.name = name
        self._load = load
        self._array = load(name)
        # A text is in memory, the others are mapped.
        mapped = not isinstance(self, CharacterSource)
        self._file_size = FileSize(Path(name), Path(name).stat()) if mapped else None

    @property
    def tokens(self) -> int:
        return int(self._array.size)

    def get(self, offset: int, length: int) -> npt.NDArray[np.int64]:
        """Returns tokens offset ... offset + length - 1 as int64; DataError outside the array."""
        check_inside(self.name, self.tokens, offset, length)
        if self._file_size is not None:
            self._file_size.require_whole()
        return self._array[offset : offset + length].astype(np.int64)

    def __reduce__(self) -> tuple[type[ArraySource], tuple[str, Load]]:
        return type(self), (self.name, self._load)


class CharacterSource(ArraySource):
    """A text as tokens: the id of a character is its rank among those that occur.

    characters: id -> character, in code point order. vocab_size: their number.
    """

    def __init__(self, name: str, load: Load) -> None:
        super().__init__(name, load)
        codes = self._array
        # One place for every code point of Unicode.
        present = np.zeros(0x110000, bool)
        present[codes] = True
        ranks = np.cumsum(present) - 1
        self.characters = {
            rank: chr(code) for rank, code in enumerate(np.flatnonzero(present).tolist())
        }
        # The whole text is in memory: one byte a character where that will do, not eight.
        self._array = ranks[codes].astype(np.min_scalar_type(len(self.characters)))

    @property
    def vocab_size(self) -> int:
        return len(self.characters)


Source = Binidx | ShardedTokens | ArraySource | CharacterSource


def open_source(data_file: str | None, data_type: str) -> Source:
    """Opens training data of one of RWKV-LM's types; DataError when it cannot be used.

    data_type: binidx (data_file is a pair's prefix, or the prefix or name of a manifest), numpy
    (one-dimensional integer .npy), uint16 (raw little-endian numbers), utf-8 and utf-16le (a text
    file), dummy (generated; needs no file).
    """
    if data_type == "dummy":
        return CharacterSource("dummy", _load_dummy)
    if not data_file:
        raise DataError(f"--data_type {data_type} needs --data_file")
    if data_type == "binidx":
        return _open_binidx(manifest_prefix(data_file))
    if data_type not in _SOURCES:
        known = ", ".join(["binidx", *_SOURCES, "dummy"])
        raise DataError(f"--data_type {data_type} is unknown; known are {known}")
    kind, load = _SOURCES[data_type]
    if not Path(data_file).is_file():
        if Path(data_file).exists():
            raise DataError(
                f"--data_file {data_file} is a folder or a pipe; it is read more than once, so "
                "write it into a file and name that"
            )
        raise DataError(f"--data_file {data_file}: there is no such file")
    source = kind(data_file, load)
    if source.tokens == 0:
        raise DataError(f"--data_file {data_file} is empty")
    return source


def pairs_of(source: Source) -> list[Binidx]:
    """Returns the pairs a source reads, in order; none for the other formats."""
    if isinstance(source, ShardedTokens):
        return source.pairs
    return [source] if isinstance(source, Binidx) else []


def characters_of(source: TokenSource) -> Mapping[int, str] | None:
    """Returns the vocabulary a source derived from its text: id -> character; None for others."""
    return source.characters if isinstance(source, CharacterSource) else None


def _open_binidx(prefix: str) -> Binidx | ShardedTokens:
    """Opens a pair, or the shards that the manifest lists."""
    manifest = read_manifest(prefix)
    if manifest is not None and manifest.shards:
        return ShardedTokens(prefix, manifest)
    pair = Binidx(prefix) if manifest is None else open_listed(prefix, prefix)
    if manifest is not None and manifest.dtype != pair.dtype.name:
        raise DataError(
            f"{idx_path(prefix)} says {pair.dtype.name} but {manifest_path(prefix)} "
            f"{manifest.dtype}; one of them is damaged or of other data: make the data again"
        )
    return pair


def _load_numpy(name: str) -> npt.NDArray[Any]:
    try:
        # Unpickling would run code of whoever made the file.
        array = np.load(name, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{name} is not a readable .npy file: {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(f"{name} must hold one one-dimensional array of integers (np.save)")
    # A plain view: slicing a memmap object costs several microseconds more.
    return np.asarray(array)


def _load_uint16(name: str) -> npt.NDArray[Any]:
    size = Path(name).stat().st_size
    if size % 2:
        raise DataError(f"{name} has {size} bytes, an odd number, and cannot hold uint16 tokens")
    # An empty file cannot be mapped.
    return np.asarray(np.memmap(name, "<u2", "r")) if size else np.zeros(0, "<u2")


def _load_text(name: str, encoding: str) -> npt.NDArray[Any]:
    try:
        # Text mode: line ends become "\n", as in RWKV-LM.
        text = Path(name).read_text(encoding=encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name} is not {encoding} text: {error.reason} at byte {error.start}"
        ) from error
    return _code_points(text)


def _load_utf8(name: str) -> npt.NDArray[Any]:
    return _load_text(name, "utf-8")


def _load_utf16le(name: str) -> npt.NDArray[Any]:
    return _load_text(name, "utf-16le")


def _load_dummy(_: str) -> npt.NDArray[Any]:
    """Makes RWKV-LM's dummy text: additions of k and k^2, both modulo 10000."""
    pairs = ((k % 10000, k * k % 10000) for k in range(100_000))
    return _code_points("".join(f".{a}+{b}={a + b}." for a, b in pairs))


def _code_points(text: str) -> npt.NDArray[Any]:
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


_SOURCES: dict[str, tuple[type[ArraySource], Load]] = {
    "numpy": (ArraySource, _load_numpy),
    "uint16": (ArraySource, _load_uint16),
    "utf-8": (CharacterSource, _load_utf8),
    "utf-16le": (CharacterSource, _load_utf16le),
}
