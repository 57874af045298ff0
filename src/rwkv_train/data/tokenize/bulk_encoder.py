"""Tokenizing many texts at once: by the compiled trie where there is one, else one by one."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rwkv_train.compiler import plain_library
from rwkv_train.data.tokenize.tokenizer import (
    END_OF_DOCUMENT,
    Tokenizer,
    VocabularyTokenizer,
    WorldTokenizer,
    load_tokenizer,
    utf8,
)
from rwkv_train.data.tokenize.world_trie import SOURCE, WorldTrie, load_library
from rwkv_train.errors import BackendError, DataError

BoolArray = npt.NDArray[np.bool_]
# Those that the compiled trie can do, and the ids that it can store.
_OF_BYTES = (WorldTokenizer, VocabularyTokenizer)
_TRIE_IDS = 1 << 16


class Seconds(dict[str, float]):
    """Time spent by stage; a stage that was not met yet counts 0."""

    def __missing__(self, stage: str) -> float:
        return 0.0

    def add(self, other: Mapping[str, float]) -> None:
        """Adds the stages of another, for example of another worker."""
        for stage, spent in other.items():
            self[stage] += spent


@dataclass
class EncodedTexts:
    """Ids of several texts, one after another; none of a text with a fault."""

    tokens: npt.NDArray[Any]
    """[sum of sizes], of the stored type"""
    sizes: npt.NDArray[np.int64]
    """[texts] ids of each text, the 0 behind it included"""
    text_bytes: npt.NDArray[np.int64]
    """[texts] UTF-8 bytes of each text"""
    faults: dict[int, str] = field(default_factory=dict)
    """by number of the text, why it cannot be used"""
    normalized: int = 0
    """of the texts checked, those changed by the tokenizer's own normalization"""
    seconds: Seconds = field(default_factory=Seconds)
    """tokenize, verify, convert"""


class BulkEncoder(Protocol):
    """Encodes texts; `closed` puts a 0 behind a text, `checked` decodes it again and compares."""

    def __call__(
        self,
        texts: Sequence[str],
        closed: BoolArray,
        checked: BoolArray,
        continued: BoolArray | None = None,
    ) -> EncodedTexts:
        """Returns the ids of all texts; closed, checked: [texts].

        continued: [texts] whether a text stands in the midst of a document; None: none does.
        """


@dataclass(frozen=True)
class BulkTokenizer:
    """A recipe for a process's encoder; can be pickled."""

    name: str
    """for `load_tokenizer`"""
    library: Path | None = None
    """the compiled half of `WorldTrie`"""
    note: str | None = None
    """why it is slower than it could be"""

    def load(self) -> BulkEncoder:
        """Loads the encoder with its tables."""
        tokenizer = load_tokenizer(self.name)
        if self.library is not None and isinstance(tokenizer, _OF_BYTES):
            return _TrieEncoder(WorldTrie(self.library, tokenizer.token_bytes()))
        return _OneByOne(tokenizer)


def bulk_tokenizer(name: str) -> BulkTokenizer:
    """Returns the fastest way to encode with that tokenizer here; may compile the library."""
    tokenizer = load_tokenizer(name)
    if not isinstance(tokenizer, _OF_BYTES) or tokenizer.vocab_size > _TRIE_IDS:
        return BulkTokenizer(name)
    try:
        library = plain_library(SOURCE)
        # Tried here, where one note is enough, and not in every worker.
        load_library(library)
    except (BackendError, OSError) as error:
        return BulkTokenizer(name, note=f"tokenizing was slower than it can be: {error}")
    return BulkTokenizer(name, library)


class _TrieEncoder:
    """Ids from the compiled trie, which are the same wherever a text stands."""

    def __init__(self, trie: WorldTrie) -> None:
        self._trie = trie

    def __call__(
        self,
        texts: Sequence[str],
        closed: BoolArray,
        checked: BoolArray,
        continued: BoolArray | None = None,
    ) -> EncodedTexts:
        began = perf_counter()
        encoded, faults = _utf8_texts(texts)
        if faults:
            # A text with a fault must leave nothing behind, its end neither.
            closed = closed & ~np.isin(np.arange(len(texts)), list(faults))
        content = b"".join(encoded)
        text_bytes = np.fromiter(map(len, encoded), np.int64, len(encoded))
        ends = np.cumsum(text_bytes)
        converted = perf_counter()
        tokens, sizes = self._trie.encode(content, ends, closed)
        tokenized = perf_counter()
        inexact = self._trie.first_inexact(content, ends, checked, tokens, sizes)
        if inexact is not None:
            # All UTF-8 can be encoded, so this is no fault of the text that could be skipped.
            raise DataError(
                f"the ids of the text {texts[inexact][:40]!r} do not decode to it: a fault of "
                "this program, of its compiler or of the machine; nothing was written"
            )
        seconds = Seconds(convert=converted - began, tokenize=tokenized - converted)
        seconds["verify"] = perf_counter() - tokenized
        return EncodedTexts(tokens, sizes, text_bytes, faults, 0, seconds)


class _OneByOne:
    """Ids from any tokenizer's own `encode`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._continuation = tokenizer.continuation()

    def __call__(
        self,
        texts: Sequence[str],
        closed: BoolArray,
        checked: BoolArray,
        continued: BoolArray | None = None,
    ) -> EncodedTexts:
        seconds = Seconds()
        found: list[array[int]] = []
        faults: dict[int, str] = {}
        normalized = 0
        for number, text in enumerate(texts):
            inside = continued is not None and continued[number]
            tokenizer = self._continuation if inside else self._tokenizer
            try:
                ids, exact = tokenize(text, tokenizer, bool(checked[number]), seconds)
            except DataError as error:
                faults[number] = str(error)
                ids, exact = array("I"), True
            else:
                if closed[number]:
                    ids.append(END_OF_DOCUMENT)
            found.append(ids)
            normalized += not exact
        began = perf_counter()
        tokens, sizes = to_arrays(found, self._tokenizer.vocab_size)
        encoded = (b"" if i in faults else t.encode() for i, t in enumerate(texts))
        text_bytes = np.fromiter(map(len, encoded), np.int64, len(texts))
        seconds["convert"] += perf_counter() - began
        return EncodedTexts(tokens, sizes, text_bytes, faults, normalized, seconds)


def tokenize(
    text: str, tokenizer: Tokenizer, checked: bool, seconds: Seconds
) -> tuple[array[int], bool]:
    """Returns a text's ids, and False if normalization changed it, which only `checked` notices.

    Adds the time spent to `seconds`. Raises DataError for a text that cannot be encoded or, with
    `checked`, does not decode to itself.
    """
    began = perf_counter()
    ids = tokenizer.encode(text)
    encoded = perf_counter()
    # Takes in a list of ints twice as fast as NumPy does, and now they are still in the cache.
    numbers = array("I", ids)
    converted = perf_counter()
    exact = not checked or decodes_exactly(numbers, text, tokenizer)
    seconds["tokenize"] += encoded - began
    seconds["convert"] += converted - encoded
    seconds["verify"] += perf_counter() - converted
    return numbers, exact


def decodes_exactly(ids: Iterable[int], text: str, tokenizer: Tokenizer) -> bool:
    """Tells whether the ids decode to exactly the text.

    False: they decode to the tokenizer's own normalization of it; anything else is a DataError.
    """
    decoded = tokenizer.decode_bytes(ids)
    if decoded == text.encode():
        return True
    if decoded == tokenizer.normalize(text).encode():
        return False
    # Whether the first space is the text's own is not in its ids.
    if tokenizer.adds_space and decoded in (f" {text}".encode(), text.removeprefix(" ").encode()):
        return False
    raise DataError(
        f"decoding the tokens does not give the text back; the tokenizer {tokenizer.name} cannot "
        "represent it: use --tokenizer world or bytes"
    )


def to_arrays(
    texts: Sequence[array[int]], vocab_size: int
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Returns all ids in one array of the stored type, and the number of each text's ids."""
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    dtype = token_dtype(vocab_size)
    parts = [np.frombuffer(text, np.uint32) for text in texts if text]
    return (np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)), sizes


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Returns the stored type: uint16 while every id fits, else int32 (there is no uint32)."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<i4")


def _utf8_texts(texts: Sequence[str]) -> tuple[list[bytes], dict[int, str]]:
    """Returns the texts' bytes, none for those that have no UTF-8, and the reasons."""
    encoded, faults = [], {}
    for number, text in enumerate(texts):
        try:
            encoded.append(utf8(text))
        except DataError as error:
            encoded.append(b"")
            faults[number] = str(error)
    return encoded, faults
