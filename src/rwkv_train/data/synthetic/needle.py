"""One fact in a long row: a key and its value among random tokens, or a number in a text.

Of tokens, a row of T over a vocabulary of V:

    h h h KEY VALUE h h h h h KEY VALUE

The haystack `h` and the value are tokens of V/2 ... V - 1, the key is one of 1 ... V/2 - 1, which
marks the needle. Of a text: an instruction, lines that say nothing, among them one that tells a
number of five digits, and a question behind them; the number is the answer. In both only the answer
counts in the loss.

A needle's depth is where it lies, from 0 for the beginning of the haystack to 1 for its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from rwkv_train.data.synthetic.associative import MOST_TOKENS, TokenRows
from rwkv_train.data.synthetic.random_numbers import RandomNumbers, rows_at_a_time
from rwkv_train.data.tokenize.tokenizer import Tokenizer, load_tokenizer
from rwkv_train.errors import DataError

INSTRUCTION = "One of the lines below tells a secret number. Remember it; the others do not matter."
LINE = "The river runs to the sea. Clouds pass over the hills. A dog sleeps in the sun.\n"
NEEDLE = "The secret number is {number}. Once more: {number} is the secret number.\n"
QUESTION = "\nWhich number was told above? The secret number is"
_DIGITS = 5
_LEAST_LINES = 2


@dataclass(frozen=True)
class NeedleRows:
    """The settings of rows of tokens; depths: taken in turn by the rows, none: at random."""

    vocab_size: int = 128
    row_tokens: int = 64
    depths: Sequence[float] = ()

    def check(self) -> None:
        """Raises DataError for settings of which no row can be made."""
        if not 6 <= self.row_tokens <= MOST_TOKENS:
            raise DataError(f"--ctx_len is {self.row_tokens}; it must be from 6 to {MOST_TOKENS}")
        if not 8 <= self.vocab_size <= MOST_TOKENS:
            raise DataError(
                f"--vocab_size is {self.vocab_size}; it must be from 8 to {MOST_TOKENS}"
            )
        _check_depths(self.depths)

    def blocks(self, rows: int, numbers: RandomNumbers) -> Iterator[TokenRows]:
        """Yields tokens and weights, [some rows, T] each, of `rows` rows together."""
        at_a_time = rows_at_a_time(self.row_tokens, self.vocab_size)
        for first in range(0, rows, at_a_time):
            yield self._rows(np.arange(first, min(first + at_a_time, rows)), numbers)

    def _rows(self, which: npt.NDArray[np.int64], numbers: RandomNumbers) -> TokenRows:
        rows, T, half = len(which), self.row_tokens, self.vocab_size // 2
        tokens = (half + numbers.below(self.vocab_size - half, rows, T)).astype(np.int32)
        key = (1 + numbers.below(half - 1, rows)).astype(np.int32)
        row, place = np.arange(rows), _places(self.depths, which, T - 3, numbers)
        tokens[row, place] = tokens[:, T - 2] = key
        # Random as all of the haystack: the needle's second token is the value.
        tokens[:, T - 1] = tokens[row, place + 1]
        weights = np.zeros(tokens.shape, np.uint8)
        weights[:, T - 1] = 1
        return tokens, weights


@dataclass(frozen=True)
class PasskeyRows:
    """The settings of rows of text; a row ends with at least one 0, as documents do.

    tokenizer: a name for `load_tokenizer`.  depths: as in `NeedleRows`.
    """

    tokenizer: str = "world"
    row_tokens: int = 512
    depths: Sequence[float] = ()

    def check(self) -> None:
        """Raises DataError for settings of which no row can be made."""
        _check_depths(self.depths)
        if self.row_tokens > MOST_TOKENS:
            raise DataError(f"--ctx_len is {self.row_tokens}; it must be at most {MOST_TOKENS}")
        least = 0
        # The digits decide how many tokens a number has.
        for number in ("00000", "11111", "12345"):
            prompt, answer = self._encoded(_LEAST_LINES, 0, number)
            least = max(least, len(prompt) + len(answer) + 1)
        if self.row_tokens < least:
            raise DataError(
                f"--ctx_len {self.row_tokens} is too short for a text with a needle in it; with "
                f"the tokenizer {self.tokenizer} it takes at least {least} tokens"
            )

    def blocks(self, rows: int, numbers: RandomNumbers) -> Iterator[TokenRows]:
        """Yields tokens and weights, [some rows, T] each, of `rows` rows together."""
        at_a_time = rows_at_a_time(self.row_tokens, 1)
        for first in range(0, rows, at_a_time):
            which = np.arange(first, min(first + at_a_time, rows))
            # As many numbers as rows, whatever the rows turn out to be.
            secrets = numbers.below(10**_DIGITS, len(which))
            depths = self._depths(which, numbers)
            tokens = np.zeros((len(which), self.row_tokens), np.int32)
            weights = np.zeros(tokens.shape, np.uint8)
            for row, (secret, depth) in enumerate(zip(secrets.tolist(), depths.tolist())):
                prompt, answer = self._fitting(depth, f"{secret:0{_DIGITS}}")
                begin, end = len(prompt), len(prompt) + len(answer)
                tokens[row, :end] = prompt + answer
                weights[row, begin:end] = 1
            yield tokens, weights

    def _depths(
        self, which: npt.NDArray[np.int64], numbers: RandomNumbers
    ) -> npt.NDArray[np.float64]:
        """Returns the depths of these rows, which say nothing of how many lines a row has."""
        if not self.depths:
            return numbers.between_0_and_1(len(which))
        return np.asarray(self.depths, np.float64)[which % len(self.depths)]

    @cached_property
    def _loaded(self) -> Tokenizer:
        # Once: the tables of some take a second and a lot of memory.
        return load_tokenizer(self.tokenizer)

    def _fitting(self, depth: float, number: str) -> tuple[list[int], list[int]]:
        """Returns prompt and answer of a row with as many lines as leave room for a 0."""
        line = len(self._loaded.encode(LINE))
        lines = max(_LEAST_LINES, self.row_tokens // line)
        while True:
            prompt, answer = self._encoded(lines, int(depth * (lines - 1)), number)
            excess = len(prompt) + len(answer) + 1 - self.row_tokens
            if excess <= 0:
                return prompt, answer
            if lines == _LEAST_LINES:
                raise DataError(
                    f"--ctx_len {self.row_tokens} is {excess} tokens too short for the number "
                    f"{number}"
                )
            lines = max(_LEAST_LINES, lines - -(-excess // line))

    def _encoded(self, lines: int, place: int, number: str) -> tuple[list[int], list[int]]:
        """Returns prompt and answer of a row of so many lines, its needle the one at `place`."""
        # Encoded as a whole, as whoever asks a model encodes it; the space belongs to the answer.
        haystack = [LINE] * lines
        haystack[place] = NEEDLE.format(number=number)
        prompt = f"{INSTRUCTION}\n\n{''.join(haystack)}{QUESTION}"
        tokenizer = self._loaded
        return tokenizer.encode(prompt), tokenizer.continuation().encode(f" {number}")


def _check_depths(depths: Sequence[float]) -> None:
    for depth in depths:
        if not 0 <= depth <= 1:
            raise DataError(
                f"--depths has {depth}; a depth is from 0, the beginning of the haystack, to 1, "
                "its end"
            )


def _places(
    depths: Sequence[float], which: npt.NDArray[np.int64], count: int, numbers: RandomNumbers
) -> npt.NDArray[np.int64]:
    """Returns the places of these rows' needles in [0, count)."""
    if not depths:
        return numbers.below(count, len(which))
    turns = np.asarray(depths, np.float64)[which % len(depths)]
    return (turns * (count - 1)).astype(np.int64)
