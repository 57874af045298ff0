"""One fact in a long row: a key and its value among random tokens, or a number in a text.

Of tokens, a row of T over a vocabulary of V:

    h h h KEY VALUE h h h h h KEY VALUE

The haystack `h` and the value are tokens of V/2 ... V - 1, the key is one of 1 ... V/2 - 1, which
marks the needle. Of a text: an instruction, lines that say nothing, among them one that tells a
number of five digits, and a question behind them; the number is the answer. In both only the answer
counts in the loss.

With several needles, of different keys or names, one of them is asked: the mark of a needle alone
does not tell the answer any more. Its depth is where it lies, from 0 for the beginning of the
haystack to 1 for its end; the others lie anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rwkv_train.data.synthetic.associative import MOST_TOKENS, TokenRows
from rwkv_train.data.synthetic.random_numbers import DistinctTokens, RandomNumbers, rows_at_a_time
from rwkv_train.data.tokenize.tokenizer import Tokenizer, load_tokenizer
from rwkv_train.errors import DataError

LINE = "The river runs to the sea. Clouds pass over the hills. A dog sleeps in the sun.\n"
NAMES = (
    *("amber", "black", "blue", "bronze", "brown", "copper", "coral", "crimson", "gold", "green"),
    *("grey", "ivory", "lemon", "olive", "orange", "pink", "purple", "red", "silver", "white"),
)


class _Wording(NamedTuple):
    """The sentences of a text; {name}, {number}: those of a needle."""

    instruction: str
    needle: str
    question: str


_ONE = _Wording(
    "One of the lines below tells a secret number. Remember it; the others do not matter.",
    "The secret number is {number}. Once more: {number} is the secret number.\n",
    "\nWhich number was told above? The secret number is",
)
_SEVERAL = _Wording(
    "Some of the lines below tell numbers. Remember these; the other lines do not matter.",
    "The {name} number is {number}. Once more: {number} is the {name} number.\n",
    "\nWhich {name} number was told above? The {name} number is",
)
_DIGITS = 5
_LEAST_LINES = 2


@dataclass(frozen=True)
class NeedleRows:
    """The settings of rows of tokens.

    depths: of the needle that is asked, taken in turn by the rows; none: at random.
    needles: in a row, of different keys.
    """

    vocab_size: int = 128
    row_tokens: int = 64
    depths: Sequence[float] = ()
    needles: int = 1

    def check(self) -> None:
        """Raises DataError for settings of which no row can be made."""
        if not 6 <= self.row_tokens <= MOST_TOKENS:
            raise DataError(f"--ctx_len is {self.row_tokens}; it must be from 6 to {MOST_TOKENS}")
        if not 8 <= self.vocab_size <= MOST_TOKENS:
            raise DataError(
                f"--vocab_size is {self.vocab_size}; it must be from 8 to {MOST_TOKENS}"
            )
        _check_depths(self.depths)
        most = min(self._slots, self.vocab_size // 2 - 1)
        if not 1 <= self.needles <= most:
            raise DataError(
                f"--needles is {self.needles}; with --ctx_len {self.row_tokens} and --vocab_size "
                f"{self.vocab_size} it must be from 1 to {most}"
            )

    @property
    def _slots(self) -> int:
        """Places of two tokens that lie beside one another in front of the question."""
        return (self.row_tokens - 3) // 2

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
        if self.needles > 1:
            places, keys = self._others(place, key, numbers)
            np.put_along_axis(tokens, places, keys, 1)
        tokens[row, place] = tokens[:, T - 2] = key
        # Random as all of the haystack: the needle's second token is the value.
        tokens[:, T - 1] = tokens[row, place + 1]
        weights = np.zeros(tokens.shape, np.uint8)
        weights[:, T - 1] = 1
        return tokens, weights

    def _others(
        self, place: npt.NDArray[np.int64], key: npt.NDArray[np.int32], numbers: RandomNumbers
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """Returns places and keys, [rows, needles - 1] each, of the needles that are not asked.

        place, key: [rows], of the one that is.
        """
        rows, more = len(key), self.needles - 1
        # Every second place from the asked one's on, in both directions: none lies within another.
        order = numbers.weighted_order(np.zeros(self._slots), rows, self.needles)
        places = place[:, None] % 2 + 2 * order
        # One may be the asked one's: of the others the first ones are taken.
        first = np.argsort(places == place[:, None], axis=1, kind="stable")[:, :more]
        keys = DistinctTokens(numbers, 1, self.vocab_size // 2 - 1, more, rows).draw(rows)
        # Of all keys but the asked one.
        keys += keys >= key[:, None]
        return np.take_along_axis(places, first, 1), keys


class _Needle(NamedTuple):
    """A line that tells a number.

    share: where it lies, from 0 to 1.
    """

    share: float
    name: str
    number: str


@dataclass(frozen=True)
class PasskeyRows:
    """The settings of rows of text; a row ends with at least one 0, as documents do.

    tokenizer: a name for `load_tokenizer`.  depths: as in `NeedleRows`.  needles: numbers in a row,
    several of which have names.
    """

    tokenizer: str = "world"
    row_tokens: int = 512
    depths: Sequence[float] = ()
    needles: int = 1

    def check(self) -> None:
        """Raises DataError for settings of which no row can be made."""
        _check_depths(self.depths)
        if self.row_tokens > MOST_TOKENS:
            raise DataError(f"--ctx_len is {self.row_tokens}; it must be at most {MOST_TOKENS}")
        if not 1 <= self.needles <= len(NAMES):
            raise DataError(f"--needles is {self.needles}; it must be from 1 to {len(NAMES)}")
        least = 0
        names = sorted(NAMES, key=len)[-self.needles :]
        # The digits decide how many tokens a number has.
        for number in ("00000", "11111", "12345"):
            needles = [_Needle(0, name, number) for name in names]
            prompt, answer = self._encoded(self._least_lines, needles)
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
            tokens = np.zeros((len(which), self.row_tokens), np.int32)
            weights = np.zeros(tokens.shape, np.uint8)
            for row, needles in enumerate(self._needles(which, numbers)):
                prompt, answer = self._fitting(needles)
                begin, end = len(prompt), len(prompt) + len(answer)
                tokens[row, :end] = prompt + answer
                weights[row, begin:end] = 1
            yield tokens, weights

    def _needles(
        self, which: npt.NDArray[np.int64], numbers: RandomNumbers
    ) -> Iterator[list[_Needle]]:
        """Yields the needles of these rows, the one that is asked first."""
        # As many numbers as rows, whatever the rows turn out to be.
        secrets = numbers.below(10**_DIGITS, len(which))[:, None]
        shares = self._depths(which, numbers)[:, None]
        order = np.zeros(secrets.shape, np.int64)
        if self.needles > 1:
            others = len(which), self.needles - 1
            secrets = np.hstack([secrets, numbers.below(10**_DIGITS, *others)])
            shares = np.hstack([shares, numbers.between_0_and_1(*others)])
            order = numbers.weighted_order(np.zeros(len(NAMES)), len(which), self.needles)
        for row in range(len(which)):
            yield [
                _Needle(
                    float(shares[row, n]), NAMES[order[row, n]], f"{secrets[row, n]:0{_DIGITS}}"
                )
                for n in range(self.needles)
            ]

    def _depths(
        self, which: npt.NDArray[np.int64], numbers: RandomNumbers
    ) -> npt.NDArray[np.float64]:
        """Returns the depths of these rows, which say nothing of how many lines a row has."""
        if not self.depths:
            return numbers.between_0_and_1(len(which))
        return np.asarray(self.depths, np.float64)[which % len(self.depths)]

    @property
    def _least_lines(self) -> int:
        return max(_LEAST_LINES, self.needles)

    @cached_property
    def _loaded(self) -> Tokenizer:
        # Once: the tables of some take a second and a lot of memory.
        return load_tokenizer(self.tokenizer)

    def _fitting(self, needles: Sequence[_Needle]) -> tuple[list[int], list[int]]:
        """Returns prompt and answer of a row with as many lines as leave room for a 0."""
        line = len(self._loaded.encode(LINE))
        lines = max(self._least_lines, self.row_tokens // line)
        while True:
            prompt, answer = self._encoded(lines, needles)
            excess = len(prompt) + len(answer) + 1 - self.row_tokens
            if excess <= 0:
                return prompt, answer
            if lines == self._least_lines:
                raise DataError(
                    f"--ctx_len {self.row_tokens} is {excess} tokens too short for the number "
                    f"{needles[0].number}"
                )
            lines = max(self._least_lines, lines - -(-excess // line))

    def _encoded(self, lines: int, needles: Sequence[_Needle]) -> tuple[list[int], list[int]]:
        """Returns prompt and answer of a row of so many lines; the first needle is asked."""
        wording = _ONE if len(needles) == 1 else _SEVERAL
        haystack, free = [LINE] * lines, list(range(lines))
        for number, needle in enumerate(needles):
            # The first one by its depth, which may be 1; the others wherever there is room.
            place = int(needle.share * (len(free) if number else lines - 1))
            haystack[free.pop(place)] = wording.needle.format(**needle._asdict())
        asked = needles[0]
        # Encoded as a whole, as whoever asks a model encodes it; the space belongs to the answer.
        question = wording.question.format(**asked._asdict())
        prompt = f"{wording.instruction}\n\n{''.join(haystack)}{question}"
        tokenizer = self._loaded
        return tokenizer.encode(prompt), tokenizer.continuation().encode(f" {asked.number}")


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
