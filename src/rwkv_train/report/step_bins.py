"""Thins a curve of any length to a thousand points or two while it grows: means, lows and highs.

A bin holds `size` steps in a row; when there are too many bins, every two become one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
# After merging there are half as many, and never fewer.
MOST_BINS = 1600


class StepBins:
    """Sums, counts, lows and highs of columns over bins of `size` rows in a row.

    A value that is not known is NaN, and counts for nothing.
    """

    def __init__(self, columns: Sequence[str], most: int = MOST_BINS) -> None:
        self.columns = tuple(columns)
        self.size = 1
        self.rows = 0
        self._most = most
        empty = np.zeros((0, len(self.columns)))
        self._sums, self._counts, self._lows, self._highs = (empty.copy() for _ in range(4))

    def add(self, values: Matrix) -> None:
        """Adds rows behind those before. values: [rows, columns]."""
        if not len(values):
            return
        known = np.isfinite(values)
        filled = np.where(known, values, 0.0)
        unknown = np.where(known, values, np.nan)
        bins = (self.rows + np.arange(len(values))) // self.size
        first = np.flatnonzero(np.r_[True, np.diff(bins) > 0])
        parts = (
            np.add.reduceat(filled, first),
            np.add.reduceat(known.astype(float), first),
            np.fmin.reduceat(unknown, first),
            np.fmax.reduceat(unknown, first),
        )
        is_open = self.rows % self.size != 0
        self.rows += len(values)
        self._append(parts, is_open)
        while len(self._sums) > self._most:
            self._halve()

    def _append(self, parts: tuple[Matrix, ...], is_open: bool) -> None:
        """Appends bins, the first of which may continue the last one there is."""
        kept = [self._sums, self._counts, self._lows, self._highs]
        joined = [np.concatenate([old, new]) for old, new in zip(kept, parts)]
        if is_open:
            at = np.r_[np.arange(len(kept[0])), np.arange(len(kept[0]) + 1, len(joined[0]))]
            joined = [f.reduceat(part, at) for f, part in zip(_HOW, joined)]
        self._sums, self._counts, self._lows, self._highs = joined

    def _halve(self) -> None:
        self.size *= 2
        pairs = np.arange(0, len(self._sums), 2)
        parts = (self._sums, self._counts, self._lows, self._highs)
        halved = [f.reduceat(part, pairs) for f, part in zip(_HOW, parts)]
        self._sums, self._counts, self._lows, self._highs = halved

    def means(self, column: str) -> Matrix:
        """Returns the mean of every bin; NaN where nothing is known."""
        i = self.columns.index(column)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(
                self._sums[:, i] / np.where(self._counts[:, i], self._counts[:, i], np.nan)
            )

    def lows(self, column: str) -> Matrix:
        """Returns the lowest value of every bin."""
        return np.asarray(self._lows[:, self.columns.index(column)])

    def highs(self, column: str) -> Matrix:
        """Returns the highest value of every bin."""
        return np.asarray(self._highs[:, self.columns.index(column)])

    def total(self, column: str) -> float:
        """Returns the sum over all rows."""
        return float(self._sums[:, self.columns.index(column)].sum())

    def knows(self, column: str) -> bool:
        """Tells whether any value of a column is known."""
        return bool(self._counts[:, self.columns.index(column)].any())


def thinned(count: int, most: int) -> Iterator[int]:
    """Yields at most `most` places of 0 ... count - 1 at equal distances, the ends always."""
    shown = min(count, most)
    for i in range(shown):
        yield i * (count - 1) // max(shown - 1, 1)


_HOW = (np.add, np.add, np.fmin, np.fmax)
