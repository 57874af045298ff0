"""Text to token ids and back: RWKV World, plain bytes, or any tokenizer.json.

In all of them id 0 ends a document: it never comes out of `encode` and decodes to nothing.
The libraries are imported by the tokenizer that needs them.
"""

from __future__ import annotations

import ast
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rwkv_train.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as LibraryTokenizer

END_OF_DOCUMENT = 0
# Keeps the arrays for decoding in the cache; a third faster than doing long documents at once.
_DECODED_AT_ONCE = 1 << 11
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()


def utf8(text: str) -> bytes:
    """Returns the text's bytes; DataError when it holds a lone surrogate."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise _lone_surrogate(error) from error


class _TokenTable:
    """Bytes by id, packed so that decoding stays in the processor's cache."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self._bytes = np.frombuffer(b"".join(tokens), np.uint8)
        self._lengths = np.array([len(token) for token in tokens], np.int32)
        self._starts = np.cumsum(self._lengths, dtype=np.int32) - self._lengths

    def decode(self, ids: Iterable[int]) -> bytes:
        """Returns the bytes of the ids; DataError for one outside the table."""
        numbers = _in_vocabulary(ids, len(self._lengths))
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


class Tokenizer(ABC):
    """name: what `load_tokenizer` takes. vocab_size: rows the embedding needs for it.

    end_of_document: the id that ends a document; None: its texts have no end.
    """

    name: str
    vocab_size: int
    end_of_document: int | None = END_OF_DOCUMENT

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Returns the text's ids, all in 1 ... vocab_size - 1; DataError for a lone surrogate."""

    @abstractmethod
    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Returns the UTF-8 bytes the ids stand for, possibly cut within a character.

        An id without a token (a model may produce one) gives U+FFFD; DataError for an id that is
        negative or not below vocab_size.
        """

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of the ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def normalize(self, text: str) -> str:
        """Returns the text as the tokenizer normalizes it before encoding; mostly unchanged."""
        return text


class WorldTokenizer(Tokenizer):
    """RWKV World: greedy longest match over 65529 byte strings, ids 1 ... 65529.

    Every UTF-8 text can be encoded. vocab_size is 65536, as in all World models.
    """

    name = "world"
    vocab_size = 65536

    def encode(self, text: str) -> list[int]:
        try:
            return self._encode(text)
        except UnicodeEncodeError as error:
            raise _lone_surrogate(error) from error

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        # Not the library's decode: it panics when the bytes are not UTF-8.
        return self._table.decode(ids)

    @cached_property
    def _encode(self) -> Callable[[str], list[int]]:
        """Loads the library's function; its tables take 230 MB, and decoding needs none."""
        # The package has no type information.
        from pyrwkv_tokenizer import RWKVTokenizer  # type: ignore[import-untyped]

        encode: Callable[[str], list[int]] = RWKVTokenizer().tokenizer.encode
        return encode

    @cached_property
    def _table(self) -> _TokenTable:
        # An id without a token is shown as a replacement character.
        tokens = [token or _REPLACEMENT for token in self.token_bytes()]
        tokens[END_OF_DOCUMENT] = b""
        return _TokenTable(tokens)

    def token_bytes(self) -> list[bytes]:
        """Returns [vocab_size] bytes by id, empty for an id that is not in the vocabulary.

        Read from the library's own file of it: `id literal length` lines.
        """
        import pyrwkv_tokenizer

        (path,) = Path(pyrwkv_tokenizer.__path__[0]).glob("rwkv_vocab_*.txt")
        tokens = [b""] * self.vocab_size
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line:
                # Only the first and the last space separate: a token may hold spaces itself.
                number, rest = line.split(" ", 1)
                tokens[int(number)] = _literal(rest.rpartition(" ")[0])
        return tokens


class BytesTokenizer(Tokenizer):
    """The UTF-8 bytes themselves: id = byte + 1."""

    name = "bytes"
    vocab_size = 257

    def encode(self, text: str) -> list[int]:
        return [byte + 1 for byte in utf8(text)]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return self._table.decode(ids)

    @cached_property
    def _table(self) -> _TokenTable:
        return _TokenTable([b"", *(bytes([byte]) for byte in range(256))])


class JsonTokenizer(Tokenizer):
    """A tokenizer.json of the `tokenizers` library, for example the 20B one of RWKV-4.

    name is the file's absolute path. Special tokens written out in a text are ordinary text.
    Raises DataError when the file cannot be read or its id 0 is an ordinary token, because RWKV
    uses 0 between documents.
    """

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as LibraryTokenizer

        try:
            self._tokenizer = LibraryTokenizer.from_file(str(path))
        # The library raises the bare class for every fault of the file.
        except Exception as error:
            raise DataError(f"{path} is not a usable tokenizer.json: {error}") from error
        self.name = str(path.resolve())
        # A file may ask for both, which would drop or invent tokens of a long document.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Otherwise "<|endoftext|>" written in a text would end the document.
        self._tokenizer.encode_special_tokens = True
        # Ids may have gaps, so that their number may be less than the rows they need.
        self.vocab_size = max(self._tokenizer.get_vocab().values(), default=0) + 1
        _check_separator(self._tokenizer, path)

    def encode(self, text: str) -> list[int]:
        # The library would replace a lone surrogate in silence.
        utf8(text)
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if END_OF_DOCUMENT in ids:
            raise DataError(f"{self.name} encodes part of the text as id 0, the end of document")
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        numbers = _in_vocabulary(ids, self.vocab_size)
        # The library would write the text of token 0 out, or drop all special tokens with it.
        kept = numbers[numbers != END_OF_DOCUMENT].tolist()
        return self._tokenizer.decode(kept, skip_special_tokens=False).encode()

    def normalize(self, text: str) -> str:
        normalizer = self._tokenizer.normalizer
        return text if normalizer is None else normalizer.normalize_str(text)


def load_tokenizer(name: str) -> Tokenizer:
    """Returns the tokenizer of that name: "world", "bytes", or the path of a tokenizer.json."""
    if name == "world":
        return WorldTokenizer()
    if name == "bytes":
        return BytesTokenizer()
    path = Path(name)
    if not path.is_file():
        raise DataError(
            f"--tokenizer {name} is neither 'world' nor 'bytes' nor an existing tokenizer.json"
        )
    return JsonTokenizer(path)


def _lone_surrogate(error: UnicodeEncodeError) -> DataError:
    return DataError(
        f"the text holds a lone surrogate at character {error.start}, which UTF-8 cannot store"
    )


def _literal(source: str) -> bytes:
    """Returns the bytes of a Python string or bytes literal."""
    if source[0] != "b" and "\\" not in source:
        # Nearly all; Python's parser takes a hundred times as long.
        return source[1:-1].encode()
    token = ast.literal_eval(source)
    return token.encode() if isinstance(token, str) else token


def _check_separator(tokenizer: LibraryTokenizer, path: Path) -> None:
    """Raises DataError unless id 0 is unused or a special token."""
    token = tokenizer.id_to_token(END_OF_DOCUMENT)
    added = tokenizer.get_added_tokens_decoder().get(END_OF_DOCUMENT)
    if token is not None and (added is None or not added.special):
        raise DataError(
            f"id 0 of {path} is the ordinary token {token!r}; RWKV puts 0 between documents, so id "
            "0 must be a special token such as <|endoftext|>: use another tokenizer"
        )


def _in_vocabulary(ids: Iterable[int], vocab_size: int) -> npt.NDArray[np.integer]:
    numbers = np.asarray(ids if isinstance(ids, (array, list)) else list(ids))
    if not numbers.size:
        return numbers.astype(np.int64)
    for number in (int(numbers.min()), int(numbers.max())):
        if not 0 <= number < vocab_size:
            raise DataError(f"token id {number} is outside the vocabulary of {vocab_size}")
    return numbers
