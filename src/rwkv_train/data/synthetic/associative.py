"""Multi-query associative recall: pairs of a key and its value, then keys whose values are asked.

A row of T tokens with P pairs over a vocabulary of V, C = 2 P (Arora et al. 2023, "Zoology"):

    k1 v1 k2 v2 ... kP vP | _ _ k2 v2 _ _ _ _ k1 v1 ...

Keys are distinct tokens of 1 ... V/2 - 1, values distinct tokens of V/2 ... V - 1. Behind the pairs
lie S = (T - C) / 2 slots of two tokens. Every key stands once more, at the beginning of a slot,
which is drawn without replacement with weights (g + 1)^(a - 1) for slot g: with a small exponent a
most questions come early, with a = 1 they are spread evenly. Elsewhere stands the filler.

One thing differs from the paper, whose rows have no answers in them: here the value follows the
asked key, where the filler would be, so that it is the next token and an ordinary trainer can learn
it. Only these values count in the loss; keys and values before them are noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from rwkv_train.data.synthetic.random_numbers import DistinctTokens, RandomNumbers, rows_at_a_time
from rwkv_train.errors import DataError

MOST_TOKENS = 1 << 20
Filler = Literal["zero", "random"]
TokenRows = tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class MqarRows:
    """The settings of the rows: V, T, P, a, and what stands where nothing is asked.

    filler: token 0, or random tokens of the whole vocabulary, among them keys that are not asked.
    """

    vocab_size: int = 128
    row_tokens: int = 64
    pairs: int = 4
    exponent: float = 0.01
    filler: Filler = "zero"

    def check(self) -> None:
        """Raises DataError for settings of which no row can be made."""
        T, P = self.row_tokens, self.pairs
        if P < 1:
            raise DataError(f"--pairs is {P}; it must be at least 1")
        if T % 2 or not 4 * P <= T <= MOST_TOKENS:
            raise DataError(
                f"--ctx_len {T} does not hold {P} pairs; it must be even and from {4 * P} "
                f"(4 x --pairs) to {MOST_TOKENS}"
            )
        if not T < self.vocab_size <= MOST_TOKENS:
            raise DataError(
                f"--vocab_size is {self.vocab_size}; it must be above --ctx_len {T} and at most "
                f"{MOST_TOKENS}"
            )
        if not (math.isfinite(self.exponent) and self.exponent > 0):
            raise DataError(
                f"--exponent is {self.exponent}; it must be above 0 (0.01: most questions come "
                "early, 1: evenly)"
            )

    def blocks(self, rows: int, numbers: RandomNumbers) -> Iterator[TokenRows]:
        """Yields tokens and weights, [some rows, T] each, of `rows` rows together."""
        at_a_time = rows_at_a_time(self.row_tokens, self.vocab_size)
        half, pool = self.vocab_size // 2, min(rows, at_a_time)
        keys = DistinctTokens(numbers, 1, half, self.pairs, pool)
        values = DistinctTokens(numbers, half, self.vocab_size, self.pairs, pool)
        for first in range(0, rows, at_a_time):
            count = min(at_a_time, rows - first)
            yield self._rows(keys.draw(count), values.draw(count), numbers)

    def _rows(
        self, keys: npt.NDArray[np.int32], values: npt.NDArray[np.int32], numbers: RandomNumbers
    ) -> TokenRows:
        """Returns the rows of these pairs; keys, values: [rows, P]."""
        rows, C = len(keys), 2 * self.pairs
        tokens = np.zeros((rows, self.row_tokens), np.int32)
        if self.filler == "random":
            tokens[:, C:] = numbers.below(self.vocab_size, rows, self.row_tokens - C)
        tokens[:, 0:C:2], tokens[:, 1:C:2] = keys, values
        slots = (self.row_tokens - C) // 2
        log_weights = (self.exponent - 1) * np.log(np.arange(1, slots + 1))
        asked = C + 2 * numbers.weighted_order(log_weights, rows, self.pairs)
        weights = np.zeros(tokens.shape, np.uint8)
        np.put_along_axis(tokens, asked, keys, 1)
        np.put_along_axis(tokens, asked + 1, values, 1)
        np.put_along_axis(weights, asked + 1, np.uint8(1), 1)
        return tokens, weights
