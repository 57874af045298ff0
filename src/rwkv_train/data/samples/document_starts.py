"""Starts of documents: from the index of a binidx pair, else after every token 0."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rwkv_train.data.binidx.layout import idx_path
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.samples.token_sources import CharacterSource, Source, TokenSource, pairs_of
from rwkv_train.data.tokenize.tokenizer import END_OF_DOCUMENT
from rwkv_train.errors import DataError


class DocumentStarts(Protocol):
    """Tells which tokens begin a document."""

    def among(self, offset: int, length: int) -> npt.NDArray[np.bool_]:
        """Returns [length] True where token offset + i is the first of a document."""


class IndexedStarts:
    """Starts by the item and document indexes of a pair or of shards, found by bisection."""

    def __init__(self, pairs: list[Binidx]) -> None:
        for pair in pairs:
            _check_index(pair)
        self._pairs = pairs
        self._ends = list(accumulate(pair.tokens for pair in pairs))

    def among(self, offset: int, length: int) -> npt.NDArray[np.bool_]:
        """Returns [length] True where token offset + i of all pairs together starts a document."""
        starts = np.zeros(length, bool)
        number, end = bisect_right(self._ends, offset), offset + length
        while number < len(self._pairs):
            pair = self._pairs[number]
            begin = self._ends[number] - pair.tokens
            if begin >= end:
                break
            # The stretch of the window that lies in this pair.
            first, last = max(offset, begin), min(end, begin + pair.tokens)
            found = _starts_between(pair, first - begin, last - begin)
            starts[found + (begin - offset)] = True
            number += 1
        return starts


class StartsAfterZero:
    """Starts of formats without an index: the first token, and every one behind a token 0."""

    def __init__(self, source: TokenSource) -> None:
        self._source = source

    def among(self, offset: int, length: int) -> npt.NDArray[np.bool_]:
        """Returns [length] True where token offset + i follows a 0."""
        # The first token of all has no token before it, and starts a document.
        before = self._source.get(max(offset - 1, 0), length - (offset == 0))
        starts = before == END_OF_DOCUMENT
        return np.concatenate(([True], starts)) if offset == 0 else starts


def document_starts(source: Source) -> DocumentStarts:
    """Finds a source's way to tell where documents start; DataError when it has none."""
    if isinstance(source, CharacterSource):
        raise DataError(
            f"--reset_at_documents: {source.name} is one text of characters and does not say where "
            "documents start; make a binidx pair with make_data.py"
        )
    pairs = pairs_of(source)
    return IndexedStarts(pairs) if pairs else StartsAfterZero(source)


def _check_index(pair: Binidx) -> None:
    if not pair.says_documents:
        raise DataError(
            f"--reset_at_documents: {idx_path(pair.prefix)} does not say where documents start "
            f"({pair.boundary_count} boundaries for {pair.item_count} items); make the pair again"
        )


def _starts_between(pair: Binidx, first: int, last: int) -> npt.NDArray[np.int64]:
    """Returns the tokens in [first, last) of the pair that start a document.

    bisect, not np.searchsorted: the arrays are mapped and not aligned, so NumPy would copy them.
    """
    index, width = pair.index, pair.dtype.itemsize
    index.file.require_whole()
    items = [bisect_left(index.pointers, token * width) for token in (first, last)]
    # From one item earlier: the window may begin inside it.
    around = slice(max(items[0] - 1, 0), items[1])
    begins = index.pointers[around]
    ends = begins + index.sizes[around].astype(np.int64) * width
    if not _cover(begins, ends, first * width, last * width):
        raise DataError(
            f"{idx_path(pair.prefix)} is damaged: its items do not lie one after another; copy or "
            "make the pair again"
        )
    documents = [bisect_left(index.doc_idx, item) for item in items]
    chosen = index.doc_idx[slice(*documents)]
    # The last boundary is the item count, where no document starts.
    starts: npt.NDArray[np.int64] = index.pointers[chosen[chosen < pair.item_count]]
    return starts // width


def _cover(
    begins: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], first: int, last: int
) -> bool:
    """Tells whether items adjoin and cover the bytes [first, last)."""
    if not len(begins) or begins[0] > first or ends[-1] < last:
        return False
    return not (begins[1:] != ends[:-1]).any()
