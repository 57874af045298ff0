"""The file that defines a tokenizer, and the one next to checkpoints that says which it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from rwkv_train.data.storage.durable import writing
from rwkv_train.data.storage.hashing import file_sha256
from rwkv_train.errors import DataError
from rwkv_train.files import write_atomically

# Rows of the vocabularies that need no file: those of the tokenizers by these names.
TOKENIZER_BY_ROWS = {65536: "world", 257: "bytes"}
_RECORD = "tokenizer_record.json"


class TokenizerRecord(NamedTuple):
    """The tokenizer of a run's checkpoints.

    name: for `load_tokenizer`.  identity: the digest of its file, or its built-in name; None: not
    known.  vocab_size: rows it needs.
    """

    name: str
    identity: str | None
    vocab_size: int


def identity_of(name: str, path: Path | None) -> str:
    """Returns what tells a tokenizer from others: the digest of its file, or its built-in name."""
    # The path of a file says nothing about its contents.
    return name if path is None else file_sha256(path)


def write_record(folder: Path, record: TokenizerRecord) -> None:
    """Writes the record of the checkpoints in a folder, unless it is there already.

    Raises DataError when it cannot be written.
    """
    path = folder / _RECORD
    content = (json.dumps(record._asdict(), indent=2, ensure_ascii=False) + "\n").encode()
    with writing(path):
        # A run that has ended writes nothing when it is started again.
        if not path.is_file() or path.read_bytes() != content:
            write_atomically(path, content)


def read_record(folder: Path) -> TokenizerRecord | None:
    """Reads the record next to checkpoints, None without one; DataError for a damaged one."""
    path = folder / _RECORD
    try:
        content = json.loads(path.read_bytes())
        record = TokenizerRecord(content["name"], content["identity"], content["vocab_size"])
        known = isinstance(record.identity, (str, type(None)))
        if not known or not isinstance(record.name, str) or type(record.vocab_size) is not int:
            raise ValueError("a value of another type")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {error}); remove it if you know the "
            "tokenizer of the checkpoints next to it"
        ) from error
    return record


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
