"""Text to binidx: blocks of documents -> tokens -> a spool on disk -> pairs in the wanted order.

A document becomes its tokens and one 0. Worker processes tokenize; the text is tokenized once, into
an unnamed temporary file next to the output (2 bytes a token). Then every repetition reads the
documents from there in its own order, which depends on their place in the inputs, the seed and the
repetition alone. So the bytes written do not depend on the number of workers.

Memory: about 60 MB a process, a few blocks of text for each worker (a block is 0.5 MB, or the
longest line), and some 60 bytes per document (120 with dedup), however much text there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rwkv_train.data.binidx.document_reader import DocumentReader, read_weighted
from rwkv_train.data.binidx.manifest import Manifest
from rwkv_train.data.binidx.shards import (
    Batches,
    Describe,
    OutputWriter,
    write_empty,
    write_outputs,
)
from rwkv_train.data.chat.template import load_template
from rwkv_train.data.convert import existing_output
from rwkv_train.data.convert.existing_output import MadeFrom, made_from
from rwkv_train.data.convert.select import Arrangement, FilteredOut, divide, keep
from rwkv_train.data.convert.streams import read_ahead, shown_while_written
from rwkv_train.data.convert.token_spool import Spool
from rwkv_train.data.convert.tokenize_corpus import Corpus
from rwkv_train.data.text.blocks import digest
from rwkv_train.data.text.inputs import (
    FileRange,
    file_ranges,
    find_inputs,
    misnamed,
    output_prefix,
    total_bytes,
)
from rwkv_train.data.tokenize.block_encoder import OnError, Verify
from rwkv_train.data.tokenize.bulk_encoder import token_dtype
from rwkv_train.data.tokenize.tokenizer import Tokenizer, load_tokenizer
from rwkv_train.errors import DataError
from rwkv_train.processors import usable_processors

# Goes up when rows of conversations make other bytes than before.
_ROWS_VERSION = 2


class InputShard(NamedTuple):
    """The part of the inputs that one of `of` machines tokenizes; workers are counted from 0."""

    worker: int
    of: int

    def prefix(self, prefix: str) -> str:
        """Returns the prefix under which this shard's output goes."""
        return f"{prefix}.part-{self.worker:05d}-of-{self.of:05d}"


@dataclass(frozen=True)
class ConvertOptions:
    """The options of a conversion (`convert`)."""

    inputs: Sequence[str]
    """files, patterns, or - for the standard input"""
    prefix: str | None = None
    """writes PREFIX.bin, PREFIX.idx and PREFIX.manifest.json; None: named after the one input, and
    so in a folder, which ends in a slash"""
    arrangement: Arrangement = field(default_factory=Arrangement)
    """which documents, in which order"""
    tokenizer: str = "world"
    """world, bytes or the path of a tokenizer.json"""
    text_key: str = "text"
    """key of the text in each JSON object, or column of a parquet file"""
    chat_template: str | None = None
    """world or the path of a template: rows are conversations, and a loss mask is written"""
    on_error: OnError = "stop"
    """stop at a document that cannot be used, or skip it"""
    verify: Verify = "sample"
    """which documents are decoded again and compared with their text"""
    workers: int | None = None
    """processes that tokenize; None: one per core"""
    shard_tokens: int | None = None
    """cut the training data into pairs of at most so many tokens"""
    overwrite: bool = False
    """replace data that was made from something else"""
    input_shard: InputShard | None = None
    """only tokenize this part of the inputs; `merge_pairs` does the rest"""


@dataclass(frozen=True)
class Converted:
    """The result of a conversion: newly made, or found already made."""

    tokenizer: Tokenizer
    manifests: Mapping[str, Manifest]
    """by prefix: the training data, then the held-out data if there is any"""
    reused: bool = False
    normalized: int = 0
    """of the documents checked, those changed by the tokenizer's own normalization"""
    unused: Mapping[str, int] = field(default_factory=dict)
    """by key, the rows in which it holds text that is in no document"""
    remarks: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """`Corpus.remarks`"""
    skipped: int = 0
    """documents that could not be used"""
    faults: Sequence[str] = ()
    """the first of them, with their reasons"""
    notes: Sequence[str] = ()
    """`Corpus.note`, and what is odd about the inputs"""
    filtered_out: FilteredOut = field(default_factory=FilteredOut)
    seconds: Mapping[str, float] = field(default_factory=dict)
    """`Corpus.seconds`, and `arrange`: reading in order, hashing and writing"""


def convert(options: ConvertOptions) -> Converted:
    """Makes the data, or returns the existing data when the same input and options made it.

    Raises DataError for wrong options, unusable input (with file and line number) and existing
    output made from something else; whatever is raised, nothing half-made stays behind.
    """
    _check(options)
    files = find_inputs(options.inputs)
    prefix = output_prefix(options.prefix, files)
    tokenizer = load_tokenizer(options.tokenizer)
    prefixes = [prefix, f"{prefix}_val"][: 1 + (options.arrangement.validation > 0)]
    if options.input_shard is not None:
        prefixes = [options.input_shard.prefix(prefix)]
    mine = file_ranges(files, *(options.input_shard or ()))
    if existing_output.exists(prefixes):
        # The standard input can be read only once, by the conversion itself.
        read = None if total_bytes(files) is None else digest(mine)
        origin = made_from(read, tokenizer, byte_options(options))
        found = existing_output.reusable(prefixes, origin, options.overwrite)
        if found is not None:
            return Converted(tokenizer, found, reused=True)
    folder = Path(prefix).parent
    existed = folder.exists()
    try:
        return _convert(options, mine, prefixes, tokenizer)
    except OSError as error:
        raise DataError(f"cannot write {prefix}: {error.strerror}") from error
    finally:
        if not existed:
            # One in which something was made is not empty.
            with suppress(OSError):
                folder.rmdir()


def arrange(
    store: DocumentReader,
    weights: DocumentReader | None,
    digests: npt.NDArray[np.void] | None,
    wanted: Arrangement,
    prefixes: Sequence[str],
    shard_tokens: int | None,
    describe: Describe,
) -> tuple[dict[str, Manifest], FilteredOut]:
    """Runs the second stage: writes the documents that are wanted in the order that is wanted.

    weights: of the documents' tokens, for a loss mask.  Raises DataError when no document is left;
    OSError when something cannot be written.
    """
    kept, filtered_out = keep(store.sizes, digests, wanted)
    # An empty pair could not be opened.
    if len(kept) == 0:
        raise DataError(
            f"no document is left: {filtered_out.too_short} are shorter than --min_tokens and "
            f"{filtered_out.too_long} longer than --max_tokens"
        )
    orders, held_out = divide(kept, wanted)
    training: Batches = read_ahead(
        batch for order in orders for batch in read_weighted(store, weights, order)
    )
    kept_tokens, held_out_tokens = (
        int(store.sizes[numbers].sum(dtype=np.int64)) for numbers in (kept, held_out)
    )
    total = wanted.repeats * (kept_tokens - held_out_tokens)
    # Last, so that the bar follows the writing and not the reading ahead.
    training = shown_while_written(training, total)
    parts = dict(zip(prefixes, [training, read_weighted(store, weights, held_out)]))
    masked = weights is not None
    return write_outputs(parts, store.dtype, shard_tokens, describe, masked=masked), filtered_out


def byte_options(options: ConvertOptions) -> MadeFrom:
    """Returns the options that decide the bytes; the newer ones only where they do something."""
    arrangement = asdict(options.arrangement)
    # Left out when off: data made before these options existed must still count as the same.
    newer = {key: arrangement.pop(key) for key in ("dedup", "min_tokens", "max_tokens")}
    newer["shard_tokens"] = options.shard_tokens
    newer["part"] = None if options.input_shard is None else options.input_shard._asdict()
    if options.chat_template is not None:
        newer["chat_template"] = load_template(options.chat_template).identity
        newer["rows_version"] = _ROWS_VERSION
    newer["on_error"] = options.on_error if options.on_error != "stop" else None
    return {
        "text_key": options.text_key,
        **arrangement,
        **{key: value for key, value in newer.items() if value},
    }


def _check(options: ConvertOptions) -> None:
    options.arrangement.check()
    if options.workers is not None and options.workers < 1:
        raise DataError(f"--workers is {options.workers}; it must be at least 1")
    if options.shard_tokens is not None and options.shard_tokens < 1:
        raise DataError(f"--shard_tokens is {options.shard_tokens}; it must be at least 1")
    shard = options.input_shard
    if shard is not None and not 0 <= shard.worker < shard.of:
        raise DataError(
            f"--worker {shard.worker} --of {shard.of}: workers are counted from 0, so it must be "
            "0 or more and below --of"
        )


def _convert(
    options: ConvertOptions,
    mine: Sequence[FileRange],
    prefixes: Sequence[str],
    tokenizer: Tokenizer,
) -> Converted:
    wanted, shard_tokens = options.arrangement, options.shard_tokens
    if options.input_shard is not None:
        # Every document once; the rest is done to all parts together.
        wanted, shard_tokens = Arrangement(shuffle=False), None
    # Taken before the work: a template's file may change in the meantime.
    decides = byte_options(options)
    corpus = _corpus(options, mine, hashed=wanted.dedup)

    def describe(output: OutputWriter) -> Manifest:
        origin = made_from(corpus.input_sha256, tokenizer, decides)
        return output.manifest(tokenizer.name, tokenizer.vocab_size, origin, bytes_per_token)

    folder = Path(prefixes[0]).parent
    dtype, weighted = token_dtype(tokenizer.vocab_size), options.chat_template is not None
    with closing(Spool(folder, dtype, weighted=weighted)) as spool:
        corpus.tokenize(spool, options.workers or usable_processors(), folder)
        # A part may be empty: a stretch of the bytes can hold the beginning of no document.
        if spool.tokens == 0 and options.input_shard is None:
            raise DataError(_nothing(options.inputs, corpus))
        bytes_per_token = corpus.text_bytes / max(spool.tokens, 1)
        began = perf_counter()
        if spool.tokens == 0:
            manifests, filtered_out = write_empty(prefixes[0], spool.dtype, describe), FilteredOut()
        else:
            digests = corpus.digests if wanted.dedup else None
            manifests, filtered_out = arrange(
                spool.store(), spool.weights(), digests, wanted, prefixes, shard_tokens, describe
            )
        corpus.seconds["arrange"] = perf_counter() - began
    return Converted(
        tokenizer,
        manifests,
        normalized=corpus.normalized,
        unused=corpus.unused,
        skipped=corpus.skipped,
        faults=corpus.faults,
        notes=[note for note in (corpus.note, *misnamed([part.file for part in mine])) if note],
        remarks=corpus.remarks,
        filtered_out=filtered_out,
        seconds=corpus.seconds,
    )


def _corpus(options: ConvertOptions, mine: Sequence[FileRange], *, hashed: bool) -> Corpus:
    template = None if options.chat_template is None else load_template(options.chat_template)
    return Corpus(
        mine,
        tokenizer=options.tokenizer,
        text_key=options.text_key,
        on_error=options.on_error,
        verify=options.verify,
        hashed=hashed,
        template=template,
    )


def _nothing(inputs: Sequence[str], corpus: Corpus) -> str:
    names = " ".join(inputs)
    if corpus.skipped:
        return (
            f"none of the {corpus.skipped} documents of {names} can be used; the first: "
            f"{corpus.faults[0]}"
        )
    return f"{names} holds no documents; expected one JSON object a line"
