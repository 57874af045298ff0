"""The file that defines a tokenizer."""

from __future__ import annotations

from pathlib import Path

from rwkv_train.errors import DataError


def definition_in(folder: Path) -> Path:
    """Returns the file in a folder that defines a tokenizer; DataError for none."""
    for found in (folder / "tokenizer.json", *sorted(folder.glob("rwkv_vocab_*.txt"))):
        if found.is_file():
            return found
    others = [n for n in ("tokenizer.model", "vocab.json", "spiece.model") if (folder / n).exists()]
    if others:
        raise DataError(
            f"{folder} holds a tokenizer as {others[0]}, which is not read; transformers makes a "
            f"tokenizer.json of it: AutoTokenizer.from_pretrained('{folder}').save_pretrained('X')"
        )
    raise DataError(f"the folder {folder} holds no tokenizer.json and no rwkv_vocab_*.txt")
