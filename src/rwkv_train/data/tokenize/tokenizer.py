"""Text to token ids and back: RWKV World, plain bytes, any tokenizer.json or World-like vocabulary.

In all of them id 0 ends a document: it never comes out of `encode` and decodes to nothing.
The libraries are imported by the tokenizer that needs them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rwkv_train.data.tokenize.added_space import without_added_space
from rwkv_train.data.tokenize.token_table import (
    TokenTable,
    in_vocabulary,
    is_vocabulary,
    read_vocabulary,
)
from rwkv_train.data.tokenize.tokenizer_files import definition_in
from rwkv_train.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as LibraryTokenizer

END_OF_DOCUMENT = 0
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()


def utf8(text: str) -> bytes:
    """Returns the text's bytes; DataError when it holds a lone surrogate."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise _lone_surrogate(error) from error


class Tokenizer(ABC):
    """name: what `load_tokenizer` takes. vocab_size: rows the embedding needs for it.

    end_of_document: the id that ends a document; None: its texts have no end.
    path: of the file that defines it; None: the name alone does.  adds_space: whether a text and
    the same text behind a space have the same ids.
    """

    name: str
    vocab_size: int
    end_of_document: int | None = END_OF_DOCUMENT
    path: Path | None = None
    adds_space: bool = False

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

    def continuation(self) -> Tokenizer:
        """Returns the tokenizer of text in the midst of a document; mostly the same."""
        return self


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
    def _table(self) -> TokenTable:
        # An id without a token is shown as a replacement character.
        tokens = [token or _REPLACEMENT for token in self.token_bytes()]
        tokens[END_OF_DOCUMENT] = b""
        return TokenTable(tokens)

    def token_bytes(self) -> list[bytes]:
        """Returns [vocab_size] bytes by id, empty for an id that is not in the vocabulary.

        Read from the library's own file of it: `id literal length` lines.
        """
        import pyrwkv_tokenizer

        (path,) = Path(pyrwkv_tokenizer.__path__[0]).glob("rwkv_vocab_*.txt")
        return _by_id(read_vocabulary(path), self.vocab_size)


class VocabularyTokenizer(Tokenizer):
    """Another vocabulary in the format of World's: greedy longest match over its byte strings.

    name is the file's absolute path.  Raises DataError for a damaged file and for one that lacks
    single bytes, without which not every text could be encoded.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path.resolve())
        self.path = path.resolve()
        tokens = read_vocabulary(path)
        self._ids = {token: number for number, token in tokens.items()}
        missing = [byte for byte in range(256) if bytes([byte]) not in self._ids]
        if missing:
            raise DataError(f"{path} has no token for the single byte 0x{missing[0]:02x}")
        self.vocab_size = max(tokens) + 1
        self._tokens = _by_id(tokens, self.vocab_size)
        # Lengths of tokens by their first byte, longest first.
        self._lengths = [
            sorted({len(token) for token in self._ids if token[0] == byte}, reverse=True)
            for byte in range(256)
        ]

    def encode(self, text: str) -> list[int]:
        content, at, ids = utf8(text), 0, []
        while at < len(content):
            for length in self._lengths[content[at]]:
                number = self._ids.get(content[at : at + length])
                if number is not None:
                    ids.append(number)
                    at += length
                    break
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return self._table.decode(ids)

    def token_bytes(self) -> list[bytes]:
        """Returns [vocab_size] bytes by id, empty for an id that is not in the vocabulary."""
        return self._tokens

    @cached_property
    def _table(self) -> TokenTable:
        tokens = [token or _REPLACEMENT for token in self._tokens]
        tokens[END_OF_DOCUMENT] = b""
        return TokenTable(tokens)


class BytesTokenizer(Tokenizer):
    """The UTF-8 bytes themselves: id = byte + 1."""

    name = "bytes"
    vocab_size = 257

    def encode(self, text: str) -> list[int]:
        return [byte + 1 for byte in utf8(text)]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return self._table.decode(ids)

    @cached_property
    def _table(self) -> TokenTable:
        return TokenTable([b"", *(bytes([byte]) for byte in range(256))])


class JsonTokenizer(Tokenizer):
    """A tokenizer.json of the `tokenizers` library, for example the 20B one of RWKV-4.

    name is the file's absolute path. Special tokens written out in a text are ordinary text.
    Raises DataError when the file cannot be read or its id 0 is an ordinary token, because RWKV
    uses 0 between documents.
    """

    def __init__(self, path: Path, definition: str | None = None) -> None:
        from tokenizers import Tokenizer as LibraryTokenizer

        self.name = str(path.resolve())
        self.path = path.resolve()
        try:
            if definition is None:
                self._tokenizer = LibraryTokenizer.from_file(str(path))
            else:
                self._tokenizer = LibraryTokenizer.from_str(definition)
        # The library raises the bare class for every fault of the file.
        except Exception as error:
            raise DataError(f"{path} is not a usable tokenizer.json: {error}") from error
        # A file may ask for both, which would drop or invent tokens of a long document.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Otherwise "<|endoftext|>" written in a text would end the document.
        self._tokenizer.encode_special_tokens = True
        # Ids may have gaps, so that their number may be less than the rows they need.
        self.vocab_size = max(self._tokenizer.get_vocab().values(), default=0) + 1
        _check_separator(self._tokenizer, path)
        self._continuation = None if definition else without_added_space(self._tokenizer.to_str())
        self.adds_space = self._continuation is not None

    def token_of_end(self) -> str | None:
        """Returns the text of token 0 as the file writes it, None where it has no such token."""
        token: str | None = self._tokenizer.id_to_token(END_OF_DOCUMENT)
        return token

    def continuation(self) -> Tokenizer:
        if self._continuation is None:
            return self
        return JsonTokenizer(Path(self.name), self._continuation)

    def encode(self, text: str) -> list[int]:
        # The library would replace a lone surrogate in silence.
        utf8(text)
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if END_OF_DOCUMENT in ids:
            raise DataError(f"{self.name} encodes part of the text as id 0, the end of document")
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        numbers = in_vocabulary(ids, self.vocab_size)
        # The library would write the text of token 0 out, or drop all special tokens with it.
        kept = numbers[numbers != END_OF_DOCUMENT].tolist()
        return self._tokenizer.decode(kept, skip_special_tokens=False).encode()

    def normalize(self, text: str) -> str:
        normalizer = self._tokenizer.normalizer
        return text if normalizer is None else normalizer.normalize_str(text)


def load_tokenizer(name: str) -> Tokenizer:
    """Returns the tokenizer of that name.

    name: "world", "bytes", or the path of a tokenizer.json, of a vocabulary in the format of
    World's, or of a folder with either. World's own vocabulary is "world". Raises DataError.
    """
    if name == "world":
        return WorldTokenizer()
    if name == "bytes":
        return BytesTokenizer()
    path = definition_in(Path(name)) if Path(name).is_dir() else Path(name)
    if not path.is_file():
        raise DataError(
            f"--tokenizer {name} is neither 'world' nor 'bytes' nor an existing tokenizer.json or "
            "vocabulary"
        )
    try:
        if not is_vocabulary(path):
            return JsonTokenizer(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    world, found = WorldTokenizer(), VocabularyTokenizer(path)
    # Under one name, so that data and models that were made with either fit together.
    same = _by_id(read_vocabulary(path), world.vocab_size) == world.token_bytes()
    return world if same else found


def _by_id(tokens: dict[int, bytes], size: int) -> list[bytes]:
    return [tokens.get(number, b"") for number in range(size)]


def _lone_surrogate(error: UnicodeEncodeError) -> DataError:
    return DataError(
        f"the text holds a lone surrogate at character {error.start}, which UTF-8 cannot store"
    )


def _check_separator(tokenizer: LibraryTokenizer, path: Path) -> None:
    """Raises DataError unless id 0 is unused or a special token."""
    token = tokenizer.id_to_token(END_OF_DOCUMENT)
    added = tokenizer.get_added_tokens_decoder().get(END_OF_DOCUMENT)
    if token is not None and (added is None or not added.special):
        raise DataError(
            f"id 0 of {path} is the ordinary token {token!r}; RWKV puts 0 between documents, so id "
            "0 must be a special token such as <|endoftext|>: use another tokenizer"
        )
