"""Text to token ids and back: RWKV World, plain bytes, or any tokenizer.json.

In all of them id 0 ends a document: it never comes out of `encode` and decodes to nothing.
The libraries are imported by the tokenizer that needs them.
"""

from __future__ import annotations

import ast
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from src.errors import DataError

END_OF_DOCUMENT = 0
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()


class Tokenizer(ABC):
    """name: what `load_tokenizer` takes. vocab_size: rows the embedding needs for it."""

    name: str
    vocab_size: int

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of the text, all in 1 ... vocab_size - 1; DataError for a lone surrogate."""

    @abstractmethod
    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 bytes the ids stand for, possibly cut within a character.

        An id without a token (a model may produce one) gives U+FFFD; DataError for an id that is
        negative or not below vocab_size.
        """

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def normalize(self, text: str) -> str:
        """What the tokenizer itself makes of the text before it cuts it up; mostly the text."""
        return text


class WorldTokenizer(Tokenizer):
    """RWKV World: greedy longest match over 65529 byte strings, ids 1 ... 65529.

    Every UTF-8 text can be encoded. vocab_size is 65536, as in all World models.
    """

    name = "world"
    vocab_size = 65536

    def __init__(self) -> None:
        from pyrwkv_tokenizer import RWKVTokenizer

        self._tokenizer = RWKVTokenizer()

    def encode(self, text: str) -> list[int]:
        _check_encodable(text)
        return self._tokenizer.encode(text)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        # Not the library's decode: it panics when the bytes are not UTF-8.
        return _join(self._tokens, ids)

    @cached_property
    def _tokens(self) -> list[bytes]:
        """Bytes by id, read from the library's own vocabulary file: `id literal length` lines."""
        text = Path(self._tokenizer.vocab_filepath).read_text(encoding="utf-8")
        lines = [line.split(" ", 1) for line in text.split("\n") if line]
        # One list: the parser is slow to start, and this runs before the first decoding.
        literals = ast.literal_eval(f"[{','.join(rest.rpartition(' ')[0] for _, rest in lines)}]")
        tokens = [_REPLACEMENT] * self.vocab_size
        tokens[END_OF_DOCUMENT] = b""
        for (number, _), token in zip(lines, literals):
            tokens[int(number)] = token.encode() if isinstance(token, str) else token
        return tokens


class BytesTokenizer(Tokenizer):
    """The UTF-8 bytes themselves: id = byte + 1."""

    name = "bytes"
    vocab_size = 257

    def encode(self, text: str) -> list[int]:
        _check_encodable(text)
        return [byte + 1 for byte in text.encode()]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return _join(self._tokens, ids)

    @cached_property
    def _tokens(self) -> list[bytes]:
        return [b"", *(bytes([byte]) for byte in range(256))]


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
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self.vocab_size = max(self._tokenizer.get_vocab().values(), default=0) + 1
        _check_separator(self._tokenizer, path)

    def encode(self, text: str) -> list[int]:
        _check_encodable(text)
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if END_OF_DOCUMENT in ids:
            raise DataError(f"{self.name} encodes part of the text as id 0, the end of document")
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        kept = [i for i in _in_vocabulary(ids, self.vocab_size) if i != END_OF_DOCUMENT]
        return self._tokenizer.decode(kept, skip_special_tokens=False).encode()

    def normalize(self, text: str) -> str:
        normalizer = self._tokenizer.normalizer
        return text if normalizer is None else normalizer.normalize_str(text)


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of that name: "world", "bytes", or the path of a tokenizer.json."""
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


def _check_encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text holds a lone surrogate at character {error.start}, which UTF-8 cannot store"
        ) from error


def _check_separator(tokenizer: Any, path: Path) -> None:
    """Id 0 must be unused or a special token."""
    token = tokenizer.id_to_token(END_OF_DOCUMENT)
    added = tokenizer.get_added_tokens_decoder().get(END_OF_DOCUMENT)
    if token is not None and (added is None or not added.special):
        raise DataError(
            f"id 0 of {path} is the ordinary token {token!r}; RWKV puts 0 between documents, so id "
            "0 must be a special token such as <|endoftext|>: use another tokenizer"
        )


def _in_vocabulary(ids: Iterable[int], vocab_size: int) -> list[int]:
    numbers = list(ids)
    for number in (min(numbers, default=0), max(numbers, default=0)):
        if not 0 <= number < vocab_size:
            raise DataError(f"token id {number} is outside the vocabulary of {vocab_size}")
    return numbers


def _join(tokens: list[bytes], ids: Iterable[int]) -> bytes:
    return b"".join(map(tokens.__getitem__, _in_vocabulary(ids, len(tokens))))
