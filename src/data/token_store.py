"""Tokens of many documents on disk, read back in any order without holding them in memory."""

from __future__ import annotations

import io
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from src.data.binidx import Binidx
from src.data.binidx_layout import bin_path, mask_path
from src.errors import DataError

# Tokens read at a time (a longer document makes it more), and document numbers looked at.
_BATCH_TOKENS = 1 << 21
_BATCH_DOCUMENTS = 1 << 16


class TokenStore:
    """Documents lying one after another in some files.

    dtype   stored type of the tokens
    sizes   [documents] int32, tokens per document, the final 0 included
    """

    def __init__(
        self,
        dtype: np.dtype[Any],
        files: Sequence[BinaryIO],
        file_tokens: Sequence[int],
        sizes: npt.NDArray[np.int32],
    ) -> None:
        self.dtype = dtype
        self.sizes = sizes
        self._files = files
        self._file_starts = np.cumsum([0, *file_tokens], dtype=np.int64)
        self._ends = np.cumsum(sizes, dtype=np.int64)

    def read(
        self, numbers: npt.NDArray[np.int64]
    ) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.int32]]]:
        """The documents of those numbers in that order: batches of their tokens and their sizes."""
        for first in range(0, len(numbers), _BATCH_DOCUMENTS):
            chosen = numbers[first : first + _BATCH_DOCUMENTS]
            sizes = self.sizes[chosen]
            batch = np.cumsum(sizes, dtype=np.int64) // _BATCH_TOKENS
            cuts = [0, *(np.flatnonzero(np.diff(batch)) + 1).tolist(), len(chosen)]
            for start, end in itertools.pairwise(cuts):
                yield self._tokens(chosen[start:end]), sizes[start:end]

    def _tokens(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        ends = self._ends[numbers]
        starts = ends - self.sizes[numbers]
        # Neighbours in the store that are wanted one after another are read at once.
        breaks = np.flatnonzero(starts[1:] != ends[:-1])
        run_starts = starts[np.concatenate(([0], breaks + 1))].tolist()
        run_ends = ends[np.concatenate((breaks, [len(ends) - 1]))].tolist()
        tokens = np.empty(int((ends - starts).sum()), self.dtype)
        target, at, width = memoryview(tokens.view(np.uint8)), 0, self.dtype.itemsize
        for start, end in zip(run_starts, run_ends):
            length = (end - start) * width
            self._fill(target[at : at + length], start)
            at += length
        return tokens

    def _fill(self, target: memoryview, token: int) -> None:
        """Reads the bytes from that token on, over the borders of files."""
        number = 0
        if len(self._files) > 1:
            number = int(np.searchsorted(self._file_starts, token, "right")) - 1
        offset = (token - int(self._file_starts[number])) * self.dtype.itemsize
        while len(target):
            in_file = self._file_starts[number + 1] - self._file_starts[number]
            left = int(in_file) * self.dtype.itemsize - offset
            if left == 0:
                number, offset = number + 1, 0
                continue
            self._files[number].seek(offset)
            count = self._files[number].readinto(target[:left])
            if not count:
                raise DataError("tokens disappeared from disk while they were read")
            target = target[count:]
            offset += count


def read_weighted(
    tokens: TokenStore, weights: TokenStore | None, numbers: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.int32], npt.NDArray[np.uint8] | None]]:
    """As `TokenStore.read`, with the weights of the tokens if there are any.

    weights: the same documents, a byte per token.
    """
    if weights is None:
        yield from ((batch, sizes, None) for batch, sizes in tokens.read(numbers))
        return
    # Equal sizes are cut into equal batches.
    for (batch, sizes), (batch_weights, _) in zip(tokens.read(numbers), weights.read(numbers)):
        yield batch, sizes, batch_weights


class Spool:
    """Collects documents in an unnamed file, which vanishes with the process however that ends."""

    def __init__(self, folder: Path, dtype: np.dtype[Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.dtype = dtype
        # Closed by close(), or by the end of the process.
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        self._sizes: list[npt.NDArray[np.int32]] = []
        self.tokens = 0

    def append(self, tokens: npt.NDArray[Any], sizes: npt.NDArray[np.int32]) -> None:
        """Adds documents."""
        content = memoryview(tokens).cast("B")
        while len(content):
            content = content[self._file.write(content) :]
        self._sizes.append(sizes)
        self.tokens += tokens.size

    def store(self) -> TokenStore:
        """All that was appended, for reading."""
        sizes = np.concatenate([np.zeros(0, np.int32), *self._sizes])
        self._sizes = [sizes]
        return TokenStore(self.dtype, [self._file], [self.tokens], sizes)

    def close(self) -> None:
        """Frees the disk space."""
        self._file.close()


def document_sizes(pair: Binidx) -> npt.NDArray[np.int32]:
    """Tokens of each document of a pair, in which a document may be several items.

    Raises DataError unless the items lie one after another and every document is one of them.
    """
    ends = np.cumsum(pair.sizes, dtype=np.int64)
    bounds = pair.doc_idx
    width = pair.dtype.itemsize
    if (
        pair.sizes.min() < 0
        or (pair.pointers != (ends - pair.sizes) * width).any()
        or len(bounds) < 2
        or bounds[0] != 0
        or bounds[-1] != pair.item_count
        or (np.diff(bounds) < 0).any()
    ):
        raise DataError(
            f"{pair.prefix}.idx is damaged: its items do not lie one after another; copy or make "
            "the pair again"
        )
    sizes = np.diff(np.concatenate(([0], ends))[bounds])
    if sizes.max() > np.iinfo(np.int32).max:
        raise DataError(f"{pair.prefix} has a document of {sizes.max()} tokens, more than 2^31 - 1")
    return sizes.astype(np.int32)


def open_bin(pair: Binidx) -> BinaryIO:
    """The .bin for reading without mapping it, which would count as memory in use."""
    return _open(bin_path(pair.prefix))


def open_mask(pair: Binidx) -> BinaryIO:
    """The .mask in the same way; ones without end when the pair has none."""
    path = mask_path(pair.prefix)
    return _open(path) if path.exists() else _Ones()


class _Ones(io.RawIOBase):
    """The weights of data without a mask: every token counts once."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return offset

    def readinto(self, target: Any) -> int:
        count = len(target)
        target[:] = b"\1" * count
        return count


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
