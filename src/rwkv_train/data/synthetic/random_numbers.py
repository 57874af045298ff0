"""Random numbers that are the same on every machine and with every release of NumPy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# Tokens of all rows of a pool together, at most.
_POOL_TOKENS = 1 << 24


class RandomNumbers:
    """A stream of random numbers, a pure function of `seed` and `stream`.

    seed: 0 ... 2^64 - 1.  stream: other numbers from the same seed.
    """

    def __init__(self, seed: int, stream: int = 0) -> None:
        # The raw bits, because NumPy keeps those the same across releases; its methods may change.
        self._bits = np.random.Philox(key=np.array([seed, stream], np.uint64))

    def below(self, limit: int, *shape: int) -> npt.NDArray[np.int64]:
        """Returns uniform integers in [0, limit); the bias is below limit / 2^32."""
        assert 0 < limit <= 1 << 31, limit
        return ((self._words(*shape) * np.uint64(limit)) >> np.uint64(32)).astype(np.int64)

    def between_0_and_1(self, *shape: int) -> npt.NDArray[np.float64]:
        """Returns uniform numbers, never 0 or 1, in steps of 2^-32."""
        return (self._words(*shape).astype(np.float64) + 0.5) / 2.0**32

    def weighted_order(
        self, log_weights: npt.NDArray[np.float64], rows: int, count: int
    ) -> npt.NDArray[np.int64]:
        """Returns [rows, count] places of `log_weights`, drawn one after another, none twice.

        Each draw takes a place that is left with a probability proportional to its weight.
        """
        # Times of exponential clocks whose rates are the weights: the first to ring is the first
        # draw, and the order of the others is that of the draws that follow.
        clocks = np.log(-np.log(self.between_0_and_1(rows, len(log_weights)))) - log_weights
        first = np.argpartition(clocks, count - 1, axis=1)[:, :count]
        order = np.argsort(np.take_along_axis(clocks, first, 1), axis=1, kind="stable")
        return np.take_along_axis(first, order, 1).astype(np.int64)

    def _words(self, *shape: int) -> npt.NDArray[np.uint64]:
        """Returns numbers of 32 random bits."""
        count = int(np.prod(shape, dtype=np.int64))
        words = self._bits.random_raw((count + 1) // 2).astype("<u8").view("<u4")
        return words[:count].astype(np.uint64).reshape(shape)


class DistinctTokens:
    """Draws rows of `count` tokens of first ... end - 1 in uniform order, none twice in a row.

    The first steps of a Fisher-Yates shuffle of all these tokens, for many rows at a time. A row
    goes on from the order that the last one left there, which makes no difference to it: each step
    chooses uniformly among the tokens that are left.
    """

    def __init__(self, numbers: RandomNumbers, first: int, end: int, count: int, rows: int) -> None:
        assert count <= end - first, (count, first, end)
        self._numbers = numbers
        self._count = count
        self._pool = np.tile(np.arange(first, end, dtype=np.int32), (rows, 1))

    def draw(self, rows: int) -> npt.NDArray[np.int32]:
        """Returns [rows, count] tokens; rows: at most those of the pool."""
        pool = self._pool[:rows]
        row = np.arange(rows)
        for place in range(self._count):
            chosen = place + self._numbers.below(pool.shape[1] - place, rows)
            taken = pool[row, chosen]
            pool[row, chosen] = pool[:, place]
            pool[:, place] = taken
        return pool[:, : self._count].copy()


def rows_at_a_time(row_tokens: int, vocab_size: int) -> int:
    """Returns how many rows are made together, so that memory stays below some 200 MB."""
    return max(1, min(4096, _POOL_TOKENS // (8 * row_tokens), _POOL_TOKENS // vocab_size))
