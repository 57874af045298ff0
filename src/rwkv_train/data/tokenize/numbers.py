"""Token ids written as numbers: the text of data that was made of ids, for example `1 72 33 0`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rwkv_train.data.tokenize.token_table import in_vocabulary
from rwkv_train.data.tokenize.tokenizer import Tokenizer
from rwkv_train.errors import DataError

_NAME = re.compile("numbers:([1-9][0-9]{0,8})")


class NumbersTokenizer(Tokenizer):
    """A number a token, with a space in front; id 0 is a token like any other and ends nothing.

    name: `numbers:` and the size of the vocabulary.
    """

    end_of_document = None

    def __init__(self, vocab_size: int) -> None:
        self.name = numbers_name(vocab_size)
        self.vocab_size = vocab_size

    def encode(self, text: str) -> list[int]:
        """Returns the numbers in the text; DataError for a word that is none of the vocabulary."""
        words = text.split()
        for word in words:
            is_number = word.isascii() and word.isdigit() and len(word) < 10
            if not is_number or int(word) >= self.vocab_size:
                raise DataError(
                    f"{word!r:.40} is not a token of {self.name}: expected numbers from 0 to "
                    f"{self.vocab_size - 1} with spaces between them"
                )
        return [int(word) for word in words]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Returns the numbers, each with a space in front, so that texts can be joined."""
        return b"".join(b" %d" % number for number in in_vocabulary(ids, self.vocab_size))

    def normalize(self, text: str) -> str:
        """Returns the text as `decode` would write it."""
        return self.decode(self.encode(text))


def numbers_name(vocab_size: int) -> str:
    """Returns the name under which `load_tokenizer` finds the numbers below `vocab_size`."""
    return f"numbers:{vocab_size}"


def vocab_size_in(name: str) -> int | None:
    """Returns the vocabulary's size in the name of a `NumbersTokenizer`, None for other names."""
    found = _NAME.fullmatch(name)
    return None if found is None else int(found.group(1))
