"""The file that holds the tokens of a corpus until their order is decided."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rwkv_train.data.binidx.document_reader import DocumentReader
from rwkv_train.data.convert.shared_file import SharedFile


class Spool:
    """Documents in an unnamed file, in the order in which processes came to write them.

    Workers `write`; the main process says with `add` which documents come next and where they lie.
    weighted: a second file holds a weight for every token, at the same place.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any], *, weighted: bool = False) -> None:
        self.dtype = dtype
        self.tokens = 0
        self._tokens = SharedFile(folder)
        self._weights = SharedFile(folder) if weighted else None
        # Tokens written or about to be, by all processes.
        # Of the workers' own start method: a lock of another one cannot be sent to them.
        self._end = multiprocessing.get_context("spawn").Value("q", 0)
        self._starts: list[npt.NDArray[np.int64]] = []
        self._sizes: list[npt.NDArray[np.int32]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_starts": [], "_sizes": []}

    def write(self, tokens: npt.NDArray[Any], weights: npt.NDArray[np.uint8] | None) -> int:
        """Appends tokens, and weights if it is weighted; returns the position, in tokens."""
        assert (weights is not None) == (self._weights is not None), "weights are all or none"
        # Only the room is reserved under the lock; the workers write at the same time.
        with self._end.get_lock():
            start: int = self._end.value
            self._end.value += tokens.size
        self._tokens.write(tokens.data, start * self.dtype.itemsize)
        if self._weights is not None and weights is not None:
            self._weights.write(weights.data, start)
        return start

    def add(self, start: int, sizes: npt.NDArray[np.int32]) -> None:
        """Adds documents of those sizes, one after another from `start` on, as the next ones."""
        ends = start + np.cumsum(sizes, dtype=np.int64)
        self._starts.append(ends - sizes)
        self._sizes.append(sizes)
        self.tokens += int(sizes.sum(dtype=np.int64))

    def store(self) -> DocumentReader:
        """Returns a reader of all documents that were added."""
        # One array takes the place of the many, so that there is one copy.
        self._sizes = [np.concatenate([np.zeros(0, np.int32), *self._sizes])]
        self._starts = [np.concatenate([np.zeros(0, np.int64), *self._starts])]
        return self._stored(self.dtype, self._tokens)

    def weights(self) -> DocumentReader | None:
        """Returns a reader of the weights of their tokens; to be called after `store`."""
        return None if self._weights is None else self._stored(np.dtype(np.uint8), self._weights)

    def close(self) -> None:
        """Frees the disk space."""
        self._tokens.close()
        if self._weights is not None:
            self._weights.close()

    def _stored(self, dtype: np.dtype[Any], shared: SharedFile) -> DocumentReader:
        (sizes,), (starts,) = self._sizes, self._starts
        return DocumentReader(dtype, [shared], [self._end.value], sizes, starts)
