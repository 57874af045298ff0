"""Vocabularies of bytes as a tokenizer.json, which the `tokenizers` library reads without our code.

RWKV World takes the longest token at every place, from the left; so does the library's WordPiece
with an empty prefix, a text being one word. Written in GPT-2's alphabet, one character a byte, the
same words come out. WordPiece takes the cube of a word's length, so a text is cut into short words
before: between two bytes that are neighbours in no token, where no token can be cut.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

END_TOKEN = "<|rwkv_tokenizer_end_of_text|>"
# WordPiece gives a longer word up as unknown; a chain of allowed bytes has no longest.
_LONGEST_WORD = 10**9


def byte_alphabet() -> list[str]:
    """Returns the character of each of the 256 bytes in the alphabet that ByteLevel uses.

    Visible characters of Latin-1 stand for themselves, the others are numbered from U+0100.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(hidden)) for byte in range(256)]


def world_definition(tokens: Sequence[bytes]) -> dict[str, Any]:
    """Returns the tokenizer.json of a vocabulary that is matched greedily.

    tokens: bytes by id, empty where there is none; id 0 ends a document.
    """
    alphabet = byte_alphabet()
    vocabulary = {END_TOKEN: 0}
    for number, token in enumerate(tokens):
        if number and token:
            vocabulary["".join(alphabet[byte] for byte in token)] = number
    words = {
        "type": "Split",
        "pattern": {"Regex": chains_pattern(tokens)},
        "behavior": "Isolated",
        "invert": False,
    }
    model = {
        "type": "WordPiece",
        "unk_token": END_TOKEN,
        "continuing_subword_prefix": "",
        "max_input_chars_per_word": _LONGEST_WORD,
        "vocab": vocabulary,
    }
    return _definition(model, [_byte_level(), words])


def bytes_definition() -> dict[str, Any]:
    """Returns the tokenizer.json of the bytes tokenizer: id = byte + 1."""
    alphabet = byte_alphabet()
    model: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": {END_TOKEN: 0, **{alphabet[byte]: byte + 1 for byte in range(256)}},
        "merges": [],
    }
    return _definition(model, [_byte_level()])


def chains_pattern(tokens: Iterable[bytes]) -> str:
    """Returns the expression of one word: bytes that are neighbours in some token, as many as come.

    `(?:[left](?=[right])|...)*` and one more character, left and right in the byte alphabet.
    """
    followers: dict[int, set[int]] = defaultdict(set)
    for token in tokens:
        for left, right in itertools.pairwise(token):
            followers[left].add(right)
    groups: dict[frozenset[int], list[int]] = defaultdict(list)
    for left, rights in followers.items():
        groups[frozenset(rights)].append(left)
    links = (f"[{_ranges(lefts)}](?=[{_ranges(rights)}])" for rights, lefts in groups.items())
    return f"(?:{'|'.join(links)})*[\\s\\S]"


def _ranges(these: Iterable[int]) -> str:
    """Returns bytes as the inside of a character class, in the alphabet and as few ranges."""
    alphabet = byte_alphabet()
    codes = sorted(ord(alphabet[byte]) for byte in these)
    parts: list[list[int]] = []
    for code in codes:
        if parts and code == parts[-1][1] + 1:
            parts[-1][1] = code
        else:
            parts.append([code, code])
    # By number: in a class, many a character would mean something else.
    return "".join(
        f"\\x{{{first:x}}}" + (f"-\\x{{{last:x}}}" if last > first else "") for first, last in parts
    )


def _byte_level() -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }


def _definition(model: dict[str, Any], steps: list[dict[str, Any]]) -> dict[str, Any]:
    end = {
        "id": 0,
        "content": END_TOKEN,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": _byte_level(),
        "model": model,
    }
