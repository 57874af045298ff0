"""A tokenizer whose tokens span words and characters, so that where a text is cut matters."""

from __future__ import annotations

from pathlib import Path

from rwkv_train.data.tokenize.tokenizer import Tokenizer, load_tokenizer

# Two words as one token, a word with its space, the first half of an emoji, the two spaces.
LONGER = [b"ab", b"abc", b" the", b"is so", "🦆".encode()[:2], b"  ", b"\n\n"]


def small_tokenizer(folder: Path) -> Tokenizer:
    """All single bytes, then `LONGER`, longest match first as in World's vocabulary."""
    path = folder / "small_vocabulary.txt"
    tokens = [bytes([byte]) for byte in range(256)] + LONGER
    lines = (f"{number} {token!r} {len(token)}\n" for number, token in enumerate(tokens, 1))
    path.write_text("".join(lines), encoding="utf-8")
    return load_tokenizer(str(path))
