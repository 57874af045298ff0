"""Compares the tokenizer of the data with that of the model: equal ids must mean equal text."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from rwkv_train.config.load import read_config
from rwkv_train.config.schema import RunConfig
from rwkv_train.data.tokenize.tokenizer import load_tokenizer
from rwkv_train.data.tokenize.tokenizer_files import (
    TOKENIZER_BY_ROWS,
    TokenizerRecord,
    identity_of,
    read_record,
)
from rwkv_train.errors import ConfigError, DataError, TrainerError
from rwkv_train.training.start.data_files import OpenedData
from rwkv_train.training.start.resume_point import Fresh, ResumePoint

_BUILT_IN = frozenset(TOKENIZER_BY_ROWS.values())
# Rows that are added to a vocabulary for speed stay below this.
_PADDING = 1024


def tokenizer_of_data(given: str | None, opened: OpenedData | None) -> TokenizerRecord | None:
    """Returns the tokenizer of the training data, None when nothing tells it.

    given: what the user says of data without a manifest.
    """
    for files in () if opened is None else opened.parts:
        manifest = files.manifest
        if manifest is not None:
            identity = manifest.made_from.get("tokenizer")
            if not isinstance(identity, str):
                identity = manifest.tokenizer if manifest.tokenizer in _BUILT_IN else None
            return TokenizerRecord(manifest.tokenizer, identity, manifest.vocab_size)
    return None if given is None else _named(given)


def compare_tokenizers(
    given: RunConfig, point: ResumePoint, rows: int, data: TokenizerRecord | None
) -> list[str]:
    """Returns what people should know of the tokenizers, a line each.

    rows: of the model's embedding.  data: the tokenizer of the data, None: not known.  Raises
    ConfigError when the model was trained with another one, unless --tokenizer confirms it.
    """
    path = point.donor if isinstance(point, Fresh) else point.path
    if data is None or path is None:
        return []
    model = _recorded(path.parent)
    if model is None or model.identity is None or data.identity is None:
        return _by_rows(given, path, rows, data) if model is None else []
    if model.identity == data.identity:
        return []
    found = (
        f"{path} was trained with the tokenizer {_told(model)}, the data made with {_told(data)}"
    )
    if given.data.tokenizer is None:
        raise ConfigError(
            f"{found}: the same ids are other text; make the data with --tokenizer {model.name}, "
            f"or say --tokenizer {data.name} to train the model on this data all the same"
        )
    return [f"{found}, as --tokenizer confirms"]


def _recorded(folder: Path) -> TokenizerRecord | None:
    """Returns the tokenizer of the checkpoints in a folder, None when nothing there tells it."""
    record = read_record(folder)
    if record is not None:
        return record
    # Runs of earlier versions wrote its name only. What cannot be read says nothing.
    with suppress(TrainerError):
        name = read_config(folder / "config.yaml").data.tokenizer
        return None if name is None else _named(name)
    return None


def _named(name: str) -> TokenizerRecord | None:
    with suppress(DataError):
        tokenizer = load_tokenizer(name)
        identity = identity_of(tokenizer.name, tokenizer.path)
        return TokenizerRecord(tokenizer.name, identity, tokenizer.vocab_size)
    return None


def _by_rows(given: RunConfig, path: Path, rows: int, data: TokenizerRecord) -> list[str]:
    """Returns what the rows of a model without a record tell of its tokenizer.

    Rows of a built-in tokenizer are taken for its own, unless the data's vocabulary has as many.
    Where that vocabulary, padded, could have the rows too, it is only a suspicion.
    """
    expected = TOKENIZER_BY_ROWS.get(rows)
    if expected is None or expected == data.name or data.vocab_size == rows:
        return []
    found = (
        f"{path} has {rows} rows, as models of the tokenizer {expected} have, and the data was "
        f"made with {_told(data)}"
    )
    if given.data.tokenizer is not None:
        return [f"{found}, as --tokenizer confirms"]
    remedy = f"make the data with --tokenizer {expected}"
    if rows - data.vocab_size >= _PADDING:
        raise ConfigError(
            f"{found}: the same ids are other text; {remedy}, or say --tokenizer {data.name} to "
            "train the model on this data all the same"
        )
    return [f"WARNING: {found}; unless that is the model's own, {remedy}"]


def _told(record: TokenizerRecord) -> str:
    digest = "" if record.identity in (None, record.name) else f", sha256 {record.identity:.12}"
    return f"{record.name} ({record.vocab_size} ids{digest})"
