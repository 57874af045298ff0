"""The World tokenizer for bulk work: a compiled trie that takes many texts a call.

About five times as fast as the library that `WorldTokenizer` uses, in 2 MB instead of 230.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SOURCE = Path(__file__).with_name("world_trie.cpp")
# Bytes an entry of the trie, entries reserved for building it, and how far beyond the last one in
# use a child may be looked for.
_ENTRY_BYTES = 8
_CAPACITY = 1 << 19
_LABELS = 256
_FUNCTIONS = ("build_trie", "encode_texts", "first_inexact")


class WorldTrie:
    """Greedy longest match over byte strings, and the comparison of ids with their text.

    library: made by `compiler.plain_library(SOURCE)`.  tokens: bytes by id, empty where there is
    none; every single byte must be a token.  Raises OSError when the library cannot be loaded.
    """

    def __init__(self, library: Path, tokens: Sequence[bytes]) -> None:
        self._library = load_library(library)
        self._token_bytes, self._token_starts = _joined(tokens)
        # In the order of their bytes: tokens with a common beginning must be neighbours.
        ids = sorted((i for i, token in enumerate(tokens) if token), key=tokens.__getitem__)
        assert {tokens[i] for i in ids} >= {bytes([b]) for b in range(256)}, "bytes are missing"
        content, starts = _joined([tokens[i] for i in ids])
        # By name: an address does not keep its array alive.
        numbers = np.array(ids, np.uint16)
        trie = np.zeros(_CAPACITY * _ENTRY_BYTES, np.uint8)
        used = self._library.build_trie(
            _address(content),
            _address(starts),
            _address(numbers),
            len(ids),
            _address(trie),
            _CAPACITY,
        )
        assert used > 0, "the vocabulary does not fit into the trie"
        # A copy frees the rest of the reserve. It keeps the entries behind those in use, where a
        # child may still be looked for.
        self._trie = trie[: (used + _LABELS) * _ENTRY_BYTES].copy()

    def encode(
        self, content: bytes, ends: npt.NDArray[np.int64], closed: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]:
        """Returns the ids of all texts, one after another, and how many each has.

        content: the UTF-8 texts, one after another.  ends: [texts] where each ends.  closed:
        [texts] whether a 0 follows its ids.
        """
        data = np.frombuffer(content, np.uint8)
        assert len(ends) == len(closed) and (ends[-1] if len(ends) else 0) == len(data), "lengths"
        # The most there can be: a token for every byte, and a 0 behind every text.
        ids = np.empty(len(data) + len(ends), np.uint16)
        sizes = np.empty(len(ends), np.int64)
        total = self._library.encode_texts(
            _address(self._trie),
            _address(data),
            _address(ends),
            _address(closed),
            len(ends),
            _address(ids),
            _address(sizes),
        )
        # A copy, because the array is several times as large as what is used of it.
        return ids[:total].copy(), sizes

    def first_inexact(
        self,
        content: bytes,
        ends: npt.NDArray[np.int64],
        checked: npt.NDArray[np.bool_],
        ids: npt.NDArray[np.uint16],
        sizes: npt.NDArray[np.int64],
    ) -> int | None:
        """Finds the first text with `checked` whose ids do not stand for exactly its bytes.

        Works with the vocabulary alone, without the trie.  Arguments as of `encode`.
        """
        data = np.frombuffer(content, np.uint8)
        assert len(ends) == len(checked) == len(sizes) and sizes.sum() == len(ids), "lengths"
        assert ids.max(initial=0) + 1 < len(self._token_starts), "an id outside the vocabulary"
        text = self._library.first_inexact(
            _address(self._token_bytes),
            _address(self._token_starts),
            _address(data),
            _address(ends),
            _address(checked),
            len(ends),
            _address(ids),
            _address(sizes),
        )
        return None if text < 0 else text


def load_library(path: Path) -> ctypes.CDLL:
    """Loads the compiled functions; OSError when they cannot be used here."""
    library = ctypes.CDLL(str(path))
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.build_trie.argtypes = [pointer] * 3 + [number, pointer, number]
    library.encode_texts.argtypes = [pointer] * 4 + [number, pointer, pointer]
    library.first_inexact.argtypes = [pointer] * 5 + [number, pointer, pointer]
    # ctypes takes results for C ints, which would cut the counts off at 32 bits.
    for name in _FUNCTIONS:
        getattr(library, name).restype = number
    return library


def _joined(tokens: Sequence[bytes]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Joins all bytes; returns where each token starts too, with the end of the last one."""
    starts = np.zeros(len(tokens) + 1, np.int64)
    np.cumsum([len(token) for token in tokens], out=starts[1:])
    return np.frombuffer(b"".join(tokens), np.uint8), starts


def _address(array: npt.NDArray[Any]) -> int:
    assert array.flags.c_contiguous, "the library reads arrays without gaps"
    return array.ctypes.data
