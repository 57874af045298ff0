"""The demand of RWKV on a tokenizer.json: the id between documents is no ordinary token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rwkv_train.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as LibraryTokenizer


def check_separator(tokenizer: LibraryTokenizer, path: Path, separator: int) -> None:
    """Raises DataError unless the separator is unused or a special token."""
    token = tokenizer.id_to_token(separator)
    added = tokenizer.get_added_tokens_decoder().get(separator)
    if token is not None and (added is None or not added.special):
        raise DataError(
            f"id {separator} of {path} is the ordinary token {token!r}; RWKV puts {separator} "
            f"between documents, so id {separator} must be a special token such as <|endoftext|>: "
            "use another tokenizer"
        )
