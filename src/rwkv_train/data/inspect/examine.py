"""Finished data: describes it (`inspect`), or checks all of it (`verify`)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from rwkv_train.data.binidx.document_reader import DocumentReader, document_sizes
from rwkv_train.data.binidx.layout import bin_path, dtype_code, mask_path
from rwkv_train.data.binidx.loss_mask import LossMask, find_mask
from rwkv_train.data.binidx.manifest import (
    Manifest,
    manifest_prefix,
    mask_digests,
    pair_digests,
    read_manifest,
)
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.inspect.lengths import describe_lengths
from rwkv_train.data.inspect.summary import primes_line, what_is_inside
from rwkv_train.data.samples.token_sources import open_source
from rwkv_train.data.storage.hashing import file_sha256
from rwkv_train.data.tokenize.block_encoder import Verify, check_every
from rwkv_train.data.tokenize.tokenizer import END_OF_DOCUMENT, Tokenizer, load_tokenizer
from rwkv_train.errors import DataError

_SHARDS_SHOWN = 8


def inspect(name: str) -> str:
    """Describes a pair or shards: header, counts, lengths, first and last document, manifest.

    Raises DataError when the data is damaged or does not fit its manifest.
    """
    prefix = manifest_prefix(name)
    manifest = read_manifest(prefix)
    # Compares the sizes with the manifest.
    tokens = open_source(prefix, "binidx").tokens
    pairs = _pairs(prefix, manifest)
    sizes = all_document_sizes(name)
    # Thousands of lines of shards that are alike would hide the others.
    lines = [_header(pair) for pair in pairs[:_SHARDS_SHOWN]]
    if len(pairs) > _SHARDS_SHOWN:
        lines.append(f"... and {len(pairs) - _SHARDS_SHOWN:,} more shards")
    lines.append(f"{prefix}: {len(sizes)} documents, {tokens} tokens")
    lines.append(describe_lengths(sizes))
    if manifest is None:
        return "\n".join([*lines, "manifest: none, so the tokenizer is not known"])
    _check_documents(prefix, manifest, len(sizes))
    lines.append(
        f"manifest: fits; tokenizer {manifest.tokenizer}, vocab_size {manifest.vocab_size}"
    )
    lines.append(f"magic primes by ctx_len: {primes_line(manifest)}")
    made_from = ", ".join(f"{key} {_listed(value)}" for key, value in manifest.made_from.items())
    lines.append(f"made from: {made_from}")
    # Finds out whether the masks are there.
    find_mask(prefix, pairs, manifest)
    lines.append(what_is_inside(pairs, manifest, load_tokenizer(manifest.tokenizer)))
    return "\n".join(lines)


def _listed(value: object) -> str:
    """Returns a value of a manifest; those of joined data are several."""
    return " and ".join(map(str, value)) if isinstance(value, list) else str(value)


def verify(name: str, which: Verify = "sample") -> str:
    """Reads all of the data and returns a line about the checks it passed.

    Checked are digests, counts, the index, that 0 ends every document and is nowhere else, that
    all ids are in the vocabulary and that documents (`which`: all, a sample or none) are encoded
    again into the same ids after decoding.  Raises DataError for the first thing that is wrong.
    """
    prefix = manifest_prefix(name)
    manifest = read_manifest(prefix)
    if manifest is None:
        raise DataError(f"{prefix} has no manifest; there is nothing to compare it with")
    # For its checks alone: sizes that do not fit are told before everything is read.
    open_source(prefix, "binidx")
    for pair, digest in pair_digests(prefix, manifest).items():
        if file_sha256(bin_path(pair)) != digest:
            raise DataError(f"{pair}.bin is not what it was when it was made (sha256 differs)")
    mask = _verified_mask(prefix, manifest)
    every = check_every(which, manifest.tokens * np.dtype(manifest.dtype).itemsize)
    documents, checked = _verify_documents(prefix, manifest, mask, every)
    _check_documents(prefix, manifest, documents)
    return (
        f"{prefix}: {documents} documents, {manifest.tokens} tokens, sha256"
        f"{', loss mask' if mask is not None else ''} and index are right; {checked} documents "
        "decoded and encoded again"
    )


def _verify_documents(
    prefix: str, manifest: Manifest, mask: LossMask | None, every: int
) -> tuple[int, int]:
    """Reads all documents; returns how many there are, and how many were encoded again."""
    tokenizer = load_tokenizer(manifest.tokenizer)
    documents = checked = at = 0
    for pair in _pairs(prefix, manifest):
        for first, tokens, sizes in _batches(pair):
            place = f"{pair.prefix}, documents {first} to {first + len(sizes) - 1}"
            closed = tokenizer.end_of_document is not None
            _check_batch(tokens, sizes, manifest.vocab_size, place, closed=closed)
            ends = np.cumsum(sizes, dtype=np.int64)
            # Every so many documents of the pair, wherever its batches begin.
            for number in range(-first % every, len(sizes), every) if every else ():
                start = int(ends[number] - sizes[number])
                end = _text_end(tokens, start, int(ends[number]), tokenizer)
                where = f"{pair.prefix}, document {first + number}"
                weights = None if mask is None else mask.get(at + start, end - start)
                _check_round_trip(tokens[start:end], tokenizer, where, weights)
                checked += 1
            documents += len(sizes)
            at += len(tokens)
    return documents, checked


def _verified_mask(prefix: str, manifest: Manifest) -> LossMask | None:
    """Reads and checks the loss mask that the manifest lists; None when it lists none."""
    digests = mask_digests(prefix, manifest)
    if not digests:
        return None
    mask = find_mask(prefix, _pairs(prefix, manifest), manifest)
    for pair, digest in digests.items():
        if file_sha256(mask_path(pair)) != digest:
            raise DataError(f"{pair}.mask is not what it was when it was made (sha256 differs)")
    return mask


def all_document_sizes(name: str) -> npt.NDArray[np.int32]:
    """Returns the tokens of every document of a pair or of shards, the final 0 included."""
    prefix = manifest_prefix(name)
    pairs = _pairs(prefix, read_manifest(prefix))
    return np.concatenate([document_sizes(pair) for pair in pairs])


def _pairs(prefix: str, manifest: Manifest | None) -> list[Binidx]:
    names = [prefix] if manifest is None else list(pair_digests(prefix, manifest))
    return [Binidx(name) for name in names]


def _header(pair: Binidx) -> str:
    return (
        f"{pair.prefix}.idx: version 1, type {pair.dtype.name} (code {dtype_code(pair.dtype)}), "
        f"{pair.item_count} items, {pair.boundary_count} document boundaries, {pair.tokens} tokens"
    )


def _check_documents(prefix: str, manifest: Manifest, documents: int) -> None:
    if documents != manifest.documents:
        raise DataError(
            f"{prefix} holds {documents} documents but its manifest says {manifest.documents}; "
            "they do not belong together: make the data again"
        )


def _batches(pair: Binidx) -> Iterator[tuple[int, npt.NDArray[Any], npt.NDArray[np.int32]]]:
    """Yields batches of documents: number of the first one, tokens and sizes."""
    store = DocumentReader(pair.dtype, [pair.file], [pair.tokens], document_sizes(pair))
    first = 0
    for tokens, sizes in store.read(np.arange(len(store.sizes))):
        yield first, tokens, sizes
        first += len(sizes)


def _check_batch(
    tokens: npt.NDArray[Any],
    sizes: npt.NDArray[np.int32],
    vocab_size: int,
    place: str,
    *,
    closed: bool,
) -> None:
    """Raises DataError for ids outside the vocabulary and, where documents are closed, for 0s."""
    ends = np.cumsum(sizes, dtype=np.int64)
    if closed:
        zeros = tokens == END_OF_DOCUMENT
        # Rows of one length are filled up with more of them.
        inside = zeros[:-1] & ~zeros[1:]
        inside[ends[:-1] - 1] = False
        if not zeros[ends - 1].all() or inside.any():
            raise DataError(f"{place}: not every document ends with 0 and has no 0 within")
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise DataError(
            f"{place}: ids reach from {tokens.min()} to {tokens.max()}, outside the vocabulary of "
            f"{vocab_size}"
        )


def _text_end(tokens: npt.NDArray[Any], start: int, end: int, tokenizer: Tokenizer) -> int:
    """Returns where the text of the document from `start` to `end` ends: before its closing 0s."""
    if tokenizer.end_of_document is None:
        return end
    text = np.flatnonzero(tokens[start:end] != END_OF_DOCUMENT)
    return start + int(text[-1]) + 1 if text.size else start


def _check_round_trip(
    document: npt.NDArray[Any], tokenizer: Tokenizer, place: str, weights: npt.NDArray[Any] | None
) -> None:
    """Raises DataError unless encoding the decoded text gives the ids again.

    weights: of a document with a loss mask, whose segments were encoded each by itself.
    """
    cuts, continuation = [0, len(document)], tokenizer
    if weights is not None:
        continuation = tokenizer.continuation()
        cuts[1:1] = (np.flatnonzero(np.diff(weights > 0)) + 1).tolist()
    for start, end in pairwise(cuts):
        ids = document[start:end].tolist()
        # Only a document's beginning may have a space put in front.
        of_place = continuation if start else tokenizer
        try:
            text = of_place.decode_bytes(ids).decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{place}: the tokens do not decode to UTF-8 text") from error
        # An answer and its end are two segments of one weight: where the end begins is not stored,
        # so that only unsupervised segments, each between two cuts, can be encoded again.
        supervised = weights is not None and start < end and weights[start] > 0
        if not supervised and not _encodes_to(of_place, text, ids):
            raise DataError(
                f"{place}: the text is encoded differently by the tokenizer {tokenizer.name}"
            )


def _encodes_to(tokenizer: Tokenizer, text: str, ids: list[int]) -> bool:
    # Decoding may drop a space that the text had of its own besides the one that was added.
    return tokenizer.encode(text) == ids or (
        tokenizer.adds_space and tokenizer.encode(f" {text}") == ids
    )
