"""Writes rows as a binidx pair with loss mask and manifest, and held-out rows next to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from rwkv_train.data.binidx.document_reader import WeightedDocuments
from rwkv_train.data.binidx.manifest import Manifest
from rwkv_train.data.binidx.shards import OutputWriter, write_outputs
from rwkv_train.data.convert import existing_output
from rwkv_train.data.convert.existing_output import MadeFrom, made_from
from rwkv_train.data.convert.pipeline import Converted
from rwkv_train.data.convert.streams import shown_while_written
from rwkv_train.data.synthetic.associative import TokenRows
from rwkv_train.data.synthetic.random_numbers import RandomNumbers
from rwkv_train.data.tokenize.bulk_encoder import token_dtype
from rwkv_train.data.tokenize.tokenizer import Tokenizer
from rwkv_train.errors import DataError

# Goes up with every change that makes other rows from the same settings.
_ROWS_VERSION = 1
_MOST_ROWS = 1 << 31


class RowSettings(Protocol):
    """The settings of a task, which make its rows: `MqarRows`, `NeedleRows`, `PasskeyRows`."""

    @property
    def row_tokens(self) -> int:
        """Tokens of a row, ctx_len when training."""

    def check(self) -> None:
        """Raises DataError for settings of which no row can be made."""

    def blocks(self, rows: int, numbers: RandomNumbers) -> Iterator[TokenRows]:
        """Yields tokens and weights, [some rows, T] each, of `rows` rows together."""


@dataclass(frozen=True)
class SyntheticData:
    """The data to be made.

    task: its name.  tokenizer: of the ids.  prefix: where the rows go; PREFIX_val has the held-out
    ones.  rows, val_rows: how many of each; 0 held-out rows: none.
    """

    task: str
    settings: RowSettings
    tokenizer: Tokenizer
    prefix: str
    rows: int
    val_rows: int = 0
    seed: int = 0
    overwrite: bool = False


def make_synthetic(data: SyntheticData) -> Converted:
    """Makes the data, or returns the existing data when the same settings made it.

    Every row is a document of the same length, so that a sample of that many tokens is a row.
    Raises DataError for settings that cannot be and for existing output of another origin.
    """
    _check(data)
    prefixes = [data.prefix, f"{data.prefix}_val"][: 1 + (data.val_rows > 0)]
    origin = _origin(data)
    if existing_output.exists(prefixes):
        found = existing_output.reusable(prefixes, origin, data.overwrite)
        if found is not None:
            return Converted(data.tokenizer, found, reused=True)
    dtype = token_dtype(data.tokenizer.vocab_size)

    def describe(output: OutputWriter) -> Manifest:
        return output.manifest(data.tokenizer.name, data.tokenizer.vocab_size, origin, None)

    counts = dict(zip(prefixes, (data.rows, data.val_rows)))
    parts = {
        prefix: shown_while_written(
            _batches(data, rows, stream, dtype), rows * data.settings.row_tokens
        )
        for stream, (prefix, rows) in enumerate(counts.items())
    }
    folder = Path(data.prefix).parent
    existed = folder.exists()
    try:
        return Converted(data.tokenizer, write_outputs(parts, dtype, None, describe, masked=True))
    except OSError as error:
        raise DataError(f"cannot write {data.prefix}: {error.strerror}") from error
    finally:
        if not existed:
            # One in which something was made is not empty.
            with suppress(OSError):
                folder.rmdir()


def _batches(
    data: SyntheticData, rows: int, stream: int, dtype: np.dtype[np.uint16 | np.int32]
) -> Iterator[WeightedDocuments]:
    """Yields the rows of one output; each has a stream of random numbers of its own."""
    for tokens, weights in data.settings.blocks(rows, RandomNumbers(data.seed, stream)):
        sizes = np.full(len(tokens), data.settings.row_tokens, np.int32)
        yield WeightedDocuments(tokens.astype(dtype).reshape(-1), sizes, weights.reshape(-1))


def _origin(data: SyntheticData) -> MadeFrom:
    settings = asdict(data.settings)  # type: ignore[call-overload]  # every task's is a dataclass
    facts = {
        "synthetic": data.task,
        "rows_version": _ROWS_VERSION,
        **{name: list(v) if isinstance(v, tuple) else v for name, v in settings.items()},
        "rows": data.rows,
        "val_rows": data.val_rows,
        "seed": data.seed,
    }
    # A path says nothing about the tokenizer; `made_from` puts in what identifies it.
    facts.pop("tokenizer", None)
    if facts.get("needles") == 1:
        # As in data that were made before there could be several: the rows are the same.
        del facts["needles"]
    return made_from("none", data.tokenizer, facts)


def _check(data: SyntheticData) -> None:
    data.settings.check()
    # The sample order needs three rows, and the last target of a row is the next one's first token.
    if not 3 <= data.rows <= _MOST_ROWS:
        raise DataError(f"--rows is {data.rows}; it must be from 3 to {_MOST_ROWS}")
    if data.val_rows and not 2 <= data.val_rows <= _MOST_ROWS:
        raise DataError(f"--val_rows is {data.val_rows}; it must be 0, or from 2 to {_MOST_ROWS}")
    if not 0 <= data.seed < 1 << 63:
        raise DataError(f"--seed is {data.seed}; it must be from 0 to 2^63 - 1")
