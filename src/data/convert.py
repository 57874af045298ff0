"""jsonl -> binidx: read documents, tokenize, write; no stage knows of the next.

A document becomes its tokens and one 0. The text is tokenized once; every repetition writes the
same documents in another order, which depends on the seed and the repetition alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from src.data.binidx import BinidxWriter, publish
from src.data.binidx_layout import idx_path
from src.data.jsonl import Document, read_documents
from src.data.manifest import Manifest, manifest_path, write_manifest
from src.data.outputs import MadeFrom, already_made, made_from
from src.data.tokenizer import END_OF_DOCUMENT, Tokenizer, load_tokenizer
from src.errors import DataError

TokenArray = npt.NDArray[np.uint16] | npt.NDArray[np.int32]

# Random streams of one seed: 0 chooses the held-out documents, 1 + e orders repetition e.
_HELD_OUT_STREAM = 0


@dataclass(frozen=True)
class ConvertOptions:
    """What `convert` is to make."""

    input: str
    """jsonl file"""
    prefix: str
    """writes PREFIX.bin, PREFIX.idx and PREFIX.manifest.json"""
    repeats: int = 1
    """times every document is written"""
    tokenizer: str = "world"
    """world, bytes or the path of a tokenizer.json"""
    text_key: str = "text"
    """key of the text in each JSON object"""
    seed: int = 0
    """decides every order and the held-out documents"""
    shuffle: bool = True
    """False: the file's order in every repetition"""
    validation: float = 0.0
    """share of the documents that go, once and in the file's order, to PREFIX_val"""
    overwrite: bool = False
    """replace data that was made from something else"""


@dataclass(frozen=True)
class Converted:
    """What `convert` made, or found already made."""

    tokenizer: Tokenizer
    manifests: Mapping[str, Manifest]
    """by prefix: the training data, then the held-out data if there is any"""
    already_made: bool
    normalized: int
    """documents changed by the tokenizer's own normalization"""


def convert(options: ConvertOptions) -> Converted:
    """Makes the pair, or returns what is there when the same input and options made it.

    Raises DataError for wrong options, unusable input (with file and line number) and existing
    output made from something else; whatever is raised, nothing half-made stays behind.
    """
    _check(options)
    tokenizer = load_tokenizer(options.tokenizer)
    origin = made_from(options.input, tokenizer, _byte_options(options))
    prefixes = [options.prefix, f"{options.prefix}_val"][: 1 + (options.validation > 0)]
    found = already_made(prefixes, origin, options.overwrite)
    if found is not None:
        return Converted(tokenizer, found, True, 0)
    arrays, normalized = [], 0
    for document in _with_progress(read_documents(options.input, options.text_key), options.input):
        array, exact = tokenize(document, tokenizer)
        arrays.append(array)
        normalized += not exact
    parts = _parts(len(arrays), options)
    try:
        manifests = _write(prefixes, parts, arrays, tokenizer, origin)
    except OSError as error:
        raise DataError(f"cannot write {options.prefix}: {error.strerror}") from error
    return Converted(tokenizer, manifests, False, normalized)


def tokenize(document: Document, tokenizer: Tokenizer) -> tuple[TokenArray, bool]:
    """A document's ids and the 0 behind them, and whether they decode to exactly its text.

    They do, or decode to what the tokenizer's own normalization makes of the text; anything else
    is a DataError with file and line number.
    """
    try:
        ids = tokenizer.encode(document.text)
    except DataError as error:
        raise DataError(f"{document.place}: {error}") from error
    decoded = tokenizer.decode_bytes(ids)
    exact = decoded == document.text.encode()
    if not exact and decoded != tokenizer.normalize(document.text).encode():
        raise DataError(
            f"{document.place}: decoding the tokens does not give the text back; the tokenizer "
            f"{tokenizer.name} cannot represent it: use --tokenizer world or bytes"
        )
    ids.append(END_OF_DOCUMENT)
    return np.array(ids, token_dtype(tokenizer.vocab_size)), exact


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Stored type: uint16 while every id fits, else int32 (the format has no uint32)."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<i4")


def random_order(count: int, seed: int, stream: int) -> npt.NDArray[np.int64]:
    """A permutation of 0 ... count - 1 that depends on the arguments alone.

    Sorted by random keys from Philox's raw stream, which NumPy keeps the same across releases.
    """
    generator = np.random.Philox(key=np.array([seed, stream], np.uint64))
    return np.argsort(generator.random_raw(count), kind="stable")


def _check(options: ConvertOptions) -> None:
    if options.repeats < 1:
        raise DataError(f"REPEATS is {options.repeats}; it must be at least 1")
    if not 0 <= options.validation < 1:
        raise DataError(
            f"--validation {options.validation} is not a share of the documents; give one in [0, 1)"
        )
    if not 0 <= options.seed < 1 << 64:
        raise DataError(f"--seed {options.seed} is not possible; it must be in [0, 2^64)")
    if not Path(options.input).is_file():
        raise DataError(f"{options.input}: there is no such file")


def _byte_options(options: ConvertOptions) -> MadeFrom:
    """The options that decide the bytes written."""
    return {
        "repeats": options.repeats,
        "text_key": options.text_key,
        "seed": options.seed,
        "shuffle": options.shuffle,
        "validation": options.validation,
    }


def _with_progress(documents: Iterable[Document], path: str) -> Iterator[Document]:
    """Passes the documents on, showing MB/s on a terminal."""
    size = Path(path).stat().st_size
    with tqdm(total=size, unit="B", unit_scale=True, desc="tokenizing", disable=None) as bar:
        for document in documents:
            yield document
            bar.update(document.bytes)


def _parts(count: int, options: ConvertOptions) -> list[Iterable[npt.NDArray[np.int64]]]:
    """Document numbers of the training data, an array a repetition, and of the held-out data.

    The former are worked out when they are asked for: together they may be larger than the text.
    """
    everything = np.arange(count)
    if options.validation == 0:
        held_out = everything[:0]
    elif count < 2:
        raise DataError(f"{options.input} has one document; --validation needs at least two")
    else:
        share = min(max(round(options.validation * count), 1), count - 1)
        held_out = np.sort(random_order(count, options.seed, _HELD_OUT_STREAM)[:share])
    orders = (
        random_order(count, options.seed, 1 + repetition) if options.shuffle else everything
        for repetition in range(options.repeats)
    )
    return [(order[~np.isin(order, held_out)] for order in orders), [held_out]]


def _write(
    prefixes: Sequence[str],
    parts: Sequence[Iterable[npt.NDArray[np.int64]]],
    arrays: Sequence[TokenArray],
    tokenizer: Tokenizer,
    origin: MadeFrom,
) -> dict[str, Manifest]:
    """Writes all parts under temporary names, then gives all of them their final names."""
    with ExitStack() as cleanup:
        writers = []
        for prefix, orders in zip(prefixes, parts):
            writer = BinidxWriter(prefix, token_dtype(tokenizer.vocab_size))
            cleanup.callback(writer.abort)
            writers.append(writer)
            for number in (number for order in orders for number in order):
                writer.append(arrays[number])
        manifests = {writer.prefix: _manifest(writer, tokenizer, origin) for writer in writers}

        def write_manifests() -> None:
            for prefix, manifest in manifests.items():
                cleanup.callback(_remove_orphan, prefix)
                write_manifest(prefix, manifest)

        publish(writers, between=write_manifests)
    return manifests


def _manifest(writer: BinidxWriter, tokenizer: Tokenizer, origin: MadeFrom) -> Manifest:
    return Manifest(
        tokenizer=tokenizer.name,
        vocab_size=tokenizer.vocab_size,
        tokens=writer.tokens,
        documents=writer.documents,
        dtype=writer.dtype.name,
        sha256_bin=writer.sha256,
        made_from=origin,
    )


def _remove_orphan(prefix: str) -> None:
    """Removes the manifest of a pair that was not completed."""
    if not idx_path(prefix).exists():
        manifest_path(prefix).unlink(missing_ok=True)
