"""Selects documents to keep and to hold out, and the order in which the others are written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rwkv_train.errors import DataError

Numbers = npt.NDArray[np.int64]
# Random streams of one seed: 0 chooses the held-out documents, 1 + e orders repetition e.
_HELD_OUT_STREAM = 0


@dataclass(frozen=True)
class Arrangement:
    """The options that decide which documents are written in which order."""

    repeats: int = 1
    """times every document is written"""
    seed: int = 0
    """decides every order and the held-out documents"""
    shuffle: bool = True
    """False: the inputs' order in every repetition"""
    validation: float = 0.0
    """share of the documents that go, once and in the inputs' order, to PREFIX_val"""
    dedup: bool = False
    """keep only the first of equal documents"""
    min_tokens: int | None = None
    """drop documents of fewer tokens (the final 0 not counted)"""
    max_tokens: int | None = None
    """drop documents of more tokens (the final 0 not counted)"""

    def check(self) -> None:
        """Raises DataError for values that make no sense."""
        if self.repeats < 1:
            raise DataError(f"REPEATS is {self.repeats}; it must be at least 1")
        if not 0 <= self.validation < 1:
            raise DataError(
                f"--validation {self.validation} is not a share of the documents; give one in "
                "[0, 1)"
            )
        if not 0 <= self.seed < 1 << 64:
            raise DataError(f"--seed {self.seed} is not possible; it must be in [0, 2^64)")
        low, high = self.min_tokens or 0, self.max_tokens
        if low < 0 or (high is not None and high < low):
            raise DataError(f"--min_tokens {low} and --max_tokens {high} leave no document")


@dataclass(frozen=True)
class FilteredOut:
    """Counts of the documents that the filters dropped, by reason."""

    duplicates: int = 0
    too_short: int = 0
    too_long: int = 0


def keep(
    sizes: npt.NDArray[np.int32], digests: npt.NDArray[np.void] | None, wanted: Arrangement
) -> tuple[Numbers, FilteredOut]:
    """Returns the numbers of the documents that pass the filters, in order, and how many do not.

    sizes: [documents], the final 0 included.  digests: [documents], needed for `dedup`.
    Lengths are judged first, so that a duplicate is counted only once.
    """
    low, high = wanted.min_tokens, wanted.max_tokens
    short = np.zeros(len(sizes), bool) if low is None else sizes - 1 < low
    long = np.zeros(len(sizes), bool) if high is None else sizes - 1 > high
    numbers = np.flatnonzero(~(short | long))
    duplicates = 0
    if wanted.dedup:
        assert digests is not None, "dedup needs digests"
        first = _first_of_equals(digests[numbers])
        duplicates = len(numbers) - len(first)
        numbers = numbers[first]
    return numbers, FilteredOut(duplicates, int(short.sum()), int(long.sum()))


def divide(kept: Numbers, wanted: Arrangement) -> tuple[Iterator[Numbers], Numbers]:
    """Returns document numbers: of the training data, an array a repetition, and held-out ones.

    The former are computed when they are asked for: together they may be larger than memory.
    """
    count = len(kept)
    held_out = np.zeros(count, bool)
    if wanted.validation > 0:
        if count < 2:
            raise DataError("there is one document; --validation needs at least two")
        # Both sides get a document, whatever the share rounds to.
        share = min(max(round(wanted.validation * count), 1), count - 1)
        held_out[random_order(count, wanted.seed, _HELD_OUT_STREAM)[:share]] = True

    def orders() -> Iterator[Numbers]:
        for repetition in range(wanted.repeats):
            if not wanted.shuffle:
                yield kept[~held_out]
                continue
            # Drawn over all documents, so that held-out ones do not move the others.
            order = random_order(count, wanted.seed, 1 + repetition)
            yield kept[order[~held_out[order]]]

    return orders(), kept[held_out]


def random_order(count: int, seed: int, stream: int) -> Numbers:
    """Returns a permutation of 0 ... count - 1 that depends on the arguments alone.

    Sorted by random keys from Philox's raw stream, which NumPy keeps the same across releases.
    """
    generator = np.random.Philox(key=np.array([seed, stream], np.uint64))
    # Stable: the order of equal keys must not depend on NumPy's choice of algorithm.
    return np.argsort(generator.random_raw(count), kind="stable")


def _first_of_equals(digests: npt.NDArray[np.void]) -> Numbers:
    """Returns the numbers, in order, of the digests that did not occur before."""
    # NumPy sorts two integers a row several times as fast as 16 opaque bytes.
    halves = np.frombuffer(digests.tobytes(), "<u8").reshape(-1, 2)
    # lexsort is stable: among equals the first comes first.
    order = np.lexsort((halves[:, 0], halves[:, 1]))
    ordered = halves[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return np.sort(order[is_first])
