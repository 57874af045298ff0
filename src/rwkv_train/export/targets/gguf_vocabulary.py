"""Vocabularies of byte strings as GGUF writes them for llama.cpp's RWKV tokenizer.

That tokenizer takes the longest match from the left, which is what World is, and bytes as well.
A token is spelled as in RWKV's own vocabulary files: Python's escapes of its bytes, without quotes.
"""

from __future__ import annotations

from collections.abc import Sequence

from rwkv_train.data.tokenize.tokenizer import (
    BytesTokenizer,
    Tokenizer,
    VocabularyTokenizer,
    WorldTokenizer,
)

# llama.cpp's kinds of token.
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5
# Published files call id 0 so, and programs look for it.
_END = "<s>"


def byte_strings(tokenizer: Tokenizer) -> list[bytes] | None:
    """Returns the bytes of every id, empty where it has none; None for another kind of tokenizer.

    Id 0 ends a document and has none.
    """
    if isinstance(tokenizer, BytesTokenizer):
        return [b"", *(bytes([byte]) for byte in range(256))]
    if isinstance(tokenizer, (WorldTokenizer, VocabularyTokenizer)):
        return tokenizer.token_bytes()
    return None


def gguf_tokens(tokens: Sequence[bytes], rows: int) -> tuple[list[str], list[int]]:
    """Returns the spelling and the kind of every id below `rows`, the rows of the embedding.

    An id without bytes is spelled as no UTF-8 text can contain: llama.cpp looks for all spellings
    in a text, and `[PAD65530]` in one must not become that id.
    """
    spellings, kinds = [_END], [_CONTROL]
    for number in range(1, rows):
        token = tokens[number] if number < len(tokens) else b""
        if token:
            spellings.append(repr(token)[2:-1])
            kinds.append(_NORMAL)
        else:
            spellings.append(f"\\xff\\xfe[PAD{number}]")
            kinds.append(_UNUSED)
    return spellings, kinds
