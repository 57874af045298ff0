"""Characters as tokens: the vocab.json that a run on a plain text writes, as RWKV-LM does."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from rwkv_train.data.tokenize.tokenizer import Tokenizer
from rwkv_train.errors import DataError

VOCABULARY = "vocab.json"


class CharacterTokenizer(Tokenizer):
    """A character a token; its texts have no end of document, and id 0 is a character too."""

    end_of_document = None

    def __init__(self, name: str, characters: Mapping[int, str]) -> None:
        self.name = name
        self.vocab_size = max(characters) + 1
        self._characters = characters
        self._ids = {character: number for number, character in characters.items()}

    def encode(self, text: str) -> list[int]:
        """Returns the ids of the characters; DataError for one that the text did not hold."""
        unknown = next((character for character in text if character not in self._ids), None)
        if unknown is not None:
            raise DataError(
                f"the character {unknown!r} did not occur in the text that the model was trained "
                f"on; {self.name} lists the {len(self._ids)} that did"
            )
        return [self._ids[character] for character in text]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Returns the characters in UTF-8; U+FFFD for an id that none has."""
        text = "".join(self._characters.get(number, "\N{REPLACEMENT CHARACTER}") for number in ids)
        return text.encode("utf-8", "surrogatepass")


def read_characters(path: Path) -> CharacterTokenizer | None:
    """Returns the tokenizer in a vocab.json; None for a file that is none."""
    try:
        content = path.read_bytes()
        # RWKV-LM's oldest programs wrote UTF-16.
        encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        values = json.loads(content.decode(encoding, "surrogatepass"))
        characters = {int(number): character for number, character in values.items()}
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    fits = all(isinstance(c, str) and len(c) == 1 and n >= 0 for n, c in characters.items())
    return CharacterTokenizer(str(path), characters) if characters and fits else None
