"""Vocabularies of byte strings: read from a file, and from ids to bytes."""

from __future__ import annotations

import ast
import re
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rwkv_train.errors import DataError

# Keeps the arrays for decoding in the cache; a third faster than doing long documents at once.
_DECODED_AT_ONCE = 1 << 11
_LINE = re.compile(r"(\d+) ([\"'].*[\"']|b[\"'].*[\"']) (\d+)")


class TokenTable:
    """Bytes by id, packed so that decoding stays in the processor's cache."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self._bytes = np.frombuffer(b"".join(tokens), np.uint8)
        self._lengths = np.array([len(token) for token in tokens], np.int32)
        self._starts = np.cumsum(self._lengths, dtype=np.int32) - self._lengths

    def decode(self, ids: Iterable[int]) -> bytes:
        """Returns the bytes of the ids; DataError for one outside the table."""
        numbers = in_vocabulary(ids, len(self._lengths))
        return b"".join(
            self._joined(numbers[first : first + _DECODED_AT_ONCE])
            for first in range(0, len(numbers), _DECODED_AT_ONCE)
        )

    def _joined(self, numbers: npt.NDArray[np.integer]) -> bytes:
        lengths = self._lengths[numbers]
        ends = np.cumsum(lengths)
        # Byte b of the result, within token t, is byte starts[t] + b - (ends - lengths)[t].
        shifts = np.repeat(self._starts[numbers] - (ends - lengths), lengths)
        return self._bytes[shifts + np.arange(len(shifts))].tobytes()


def is_vocabulary(path: Path) -> bool:
    """Tells whether a file begins as RWKV's vocabularies do: `1 '\\x00' 1`."""
    with path.open("rb") as file:
        line = file.readline(1000).decode("utf-8", "replace")
    return _LINE.fullmatch(line.strip()) is not None


def read_vocabulary(path: Path) -> dict[int, bytes]:
    """Reads a vocabulary of `id literal length` lines: id -> bytes.

    Nothing in the file is executed.  Raises DataError, with the line, for any other file.
    """
    tokens: dict[int, bytes] = {}
    try:
        # Not splitlines(): tokens hold characters that end lines elsewhere.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a readable vocabulary: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            # Only the first and the last space separate: a token may hold spaces itself.
            index, rest = line.rstrip("\r").split(" ", 1)
            source, _, length = rest.rpartition(" ")
            token = _literal(source)
            if len(token) != int(length) or int(index) in tokens or int(index) < 1 or not token:
                raise ValueError("its length, or its id, is wrong")
        except (ValueError, SyntaxError, IndexError) as error:
            raise DataError(
                f"{path}, line {number}: expected `id 'token' bytes`, as in RWKV's vocabularies, "
                f"found {line!r:.60}"
            ) from error
        tokens[int(index)] = token
    return tokens


def by_id(tokens: dict[int, bytes], size: int) -> list[bytes]:
    """Returns [size] bytes by id, empty for an id that is not in the vocabulary."""
    return [tokens.get(number, b"") for number in range(size)]


def in_vocabulary(ids: Iterable[int], vocab_size: int) -> npt.NDArray[np.integer]:
    """Returns the ids as an array; DataError for one that is negative or not below vocab_size."""
    numbers = np.asarray(ids if isinstance(ids, (array, list)) else list(ids))
    if not numbers.size:
        return numbers.astype(np.int64)
    for number in (int(numbers.min()), int(numbers.max())):
        if not 0 <= number < vocab_size:
            raise DataError(f"token id {number} is outside the vocabulary of {vocab_size}")
    return numbers


def _literal(source: str) -> bytes:
    """Returns the bytes of a Python string or bytes literal."""
    if source[0] in "\"'" and source[0] == source[-1] and "\\" not in source:
        # Nearly all; Python's parser takes a hundred times as long.
        return source[1:-1].encode()
    token = ast.literal_eval(source)
    if not isinstance(token, (str, bytes)):
        raise ValueError("it is no text")
    return token.encode() if isinstance(token, str) else token
