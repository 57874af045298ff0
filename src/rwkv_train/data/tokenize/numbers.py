"""Token ids as text: numbers with spaces in front, for data that was made of ids (` 1 72 33 0`)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rwkv_train.data.tokenize.token_table import in_vocabulary
from rwkv_train.errors import DataError

_NAME = re.compile("numbers:([1-9][0-9]{0,8})")


def numbers_name(vocab_size: int) -> str:
    """Returns the name under which `load_tokenizer` finds the numbers below `vocab_size`."""
    return f"numbers:{vocab_size}"


def vocab_size_in(name: str) -> int | None:
    """Returns the vocabulary's size in such a name, None for the names of other tokenizers."""
    found = _NAME.fullmatch(name)
    return None if found is None else int(found.group(1))


def numbers_in(text: str, vocab_size: int) -> list[int]:
    """Returns the numbers in the text; DataError for a word that is none below vocab_size."""
    words = text.split()
    for word in words:
        is_number = word.isascii() and word.isdigit() and len(word) < 10
        if not is_number or int(word) >= vocab_size:
            raise DataError(
                f"{word!r:.40} is not a token of {numbers_name(vocab_size)}: expected numbers from "
                f"0 to {vocab_size - 1} with spaces between them"
            )
    return [int(word) for word in words]


def written_numbers(ids: Iterable[int], vocab_size: int) -> bytes:
    """Returns the numbers, each with a space in front, so that texts can be joined."""
    return b"".join(b" %d" % number for number in in_vocabulary(ids, vocab_size))
