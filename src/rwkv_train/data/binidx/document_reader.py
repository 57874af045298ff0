"""Tokens of many documents on disk, read back in any order without holding them in memory."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from rwkv_train.data.binidx.layout import mask_path
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.storage.open_files import StoredFile
from rwkv_train.errors import DataError

# Tokens read at a time (a longer document makes it more), and document numbers looked at.
_BATCH_TOKENS = 1 << 21
_BATCH_DOCUMENTS = 1 << 16


class PositionedFile(Protocol):
    """A file that is read by position (`StoredFile`)."""

    def read_into(self, target: Any, offset: int) -> None:
        """Fills a writable buffer with the bytes from `offset` on."""


class DocumentReader:
    """Documents lying in some files.

    dtype   stored type of the tokens
    sizes   [documents] int32, tokens per document, the final 0 included
    starts  [documents] int64, where each starts, in tokens from the first file's beginning; None:
            one lies after another
    files   None stands for one that holds nothing but ones
    """

    def __init__(
        self,
        dtype: np.dtype[Any],
        files: Sequence[PositionedFile | None],
        file_tokens: Sequence[int],
        sizes: npt.NDArray[np.int32],
        starts: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.dtype = dtype
        self.sizes = sizes
        self._files = files
        # In bytes, the end of the last one behind them.
        ends = np.cumsum([0, *file_tokens], dtype=np.int64) * dtype.itemsize
        self._file_starts: list[int] = ends.tolist()
        self._starts = np.cumsum(sizes, dtype=np.int64) - sizes if starts is None else starts

    def read(
        self, numbers: npt.NDArray[np.int64]
    ) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.int32]]]:
        """Yields the documents of those numbers in that order, in batches: tokens, sizes."""
        for first in range(0, len(numbers), _BATCH_DOCUMENTS):
            chosen = numbers[first : first + _BATCH_DOCUMENTS]
            sizes = self.sizes[chosen]
            # Documents that end in the same multiple of _BATCH_TOKENS are read together.
            batch = np.cumsum(sizes, dtype=np.int64) // _BATCH_TOKENS
            cuts = [0, *(np.flatnonzero(np.diff(batch)) + 1).tolist(), len(chosen)]
            for start, end in itertools.pairwise(cuts):
                yield self._tokens(chosen[start:end]), sizes[start:end]

    def _tokens(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        starts = self._starts[numbers]
        ends = starts + self.sizes[numbers]
        # Neighbours in the store that are wanted one after another are read at once.
        breaks = np.flatnonzero(starts[1:] != ends[:-1])
        width = self.dtype.itemsize
        run_starts = (starts[np.concatenate(([0], breaks + 1))] * width).tolist()
        run_ends = (ends[np.concatenate((breaks, [len(ends) - 1]))] * width).tolist()
        tokens = np.empty(int((ends - starts).sum()), self.dtype)
        target, at = tokens.view(np.uint8).data, 0
        for start, end in zip(run_starts, run_ends):
            self._fill(target[at : at + end - start], start)
            at += end - start
        return tokens

    def _fill(self, target: memoryview, offset: int) -> None:
        """Fills `target` with the bytes from `offset` on, over the borders of files."""
        # To the right: an empty file starts where the next one does, and holds no byte to read.
        number = bisect_right(self._file_starts, offset) - 1
        while len(target):
            # A stretch may cross into the next file.
            part = target[: self._file_starts[number + 1] - offset]
            file = self._files[number]
            if file is None:
                part[:] = b"\1" * len(part)
            else:
                file.read_into(part, offset - self._file_starts[number])
            target, offset, number = target[len(part) :], offset + len(part), number + 1


class WeightedDocuments(NamedTuple):
    """Some documents, one after another.

    tokens: of all of them.  sizes: [documents].  weights: of the tokens; None: no loss mask.
    """

    tokens: npt.NDArray[Any]
    sizes: npt.NDArray[np.int32]
    weights: npt.NDArray[np.uint8] | None = None


def read_weighted(
    tokens: DocumentReader, weights: DocumentReader | None, numbers: npt.NDArray[np.int64]
) -> Iterator[WeightedDocuments]:
    """Yields the documents of those numbers in batches, with the weights of their tokens if any.

    weights: of the same documents, a byte per token.
    """
    if weights is None:
        yield from (WeightedDocuments(batch, sizes) for batch, sizes in tokens.read(numbers))
        return
    # Equal sizes are cut into equal batches.
    for (batch, sizes), (batch_weights, _) in zip(tokens.read(numbers), weights.read(numbers)):
        yield WeightedDocuments(batch, sizes, batch_weights)


def document_sizes(pair: Binidx) -> npt.NDArray[np.int32]:
    """Returns the tokens of each document of a pair, in which a document may be several items.

    Raises DataError unless the items lie one after another and every document is one of them.
    """
    pair.require_index()
    # Whole arrays are compared, because an index may list a hundred million items.
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
    sizes: npt.NDArray[np.int64] = np.diff(np.concatenate(([0], ends))[bounds])
    if sizes.max() > np.iinfo(np.int32).max:
        raise DataError(f"{pair.prefix} has a document of {sizes.max()} tokens, more than 2^31 - 1")
    return sizes.astype(np.int32)


def open_mask(pair: Binidx) -> StoredFile | None:
    """Opens the .mask of a pair; None when it has none: every token counts once."""
    path = mask_path(pair.prefix)
    try:
        return StoredFile(path) if path.exists() else None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
