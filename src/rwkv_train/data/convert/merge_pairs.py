"""Joins data that is already tokenized: pairs and shards of any origin, or the parts of one run.

Joining keeps every document of every input once, in the order given; joined to data with a loss
mask, all tokens of data without one are supervised. Parts that several machines
made of one corpus (`--worker i --of n`) are put together as their common options say: repeated,
shuffled, divided and filtered over all documents, which gives the bytes that one machine would
have made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rwkv_train.data.binidx.document_reader import DocumentReader, document_sizes, open_mask
from rwkv_train.data.binidx.layout import mask_path
from rwkv_train.data.binidx.loss_mask import find_mask
from rwkv_train.data.binidx.manifest import Manifest, manifest_prefix, pair_digests, read_manifest
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.binidx.shards import OutputWriter
from rwkv_train.data.convert import existing_output
from rwkv_train.data.convert.foreign_binidx import foreign_manifest
from rwkv_train.data.convert.pipeline import InputShard, arrange
from rwkv_train.data.convert.select import Arrangement
from rwkv_train.data.storage.hashing import file_sha256
from rwkv_train.data.text.inputs import names_folder
from rwkv_train.data.tokenize.block_encoder import DIGEST_BYTES, document_digests
from rwkv_train.errors import DataError


class Merged(NamedTuple):
    """The result of `merge_pairs`: newly made, or found already made."""

    manifests: Mapping[str, Manifest]
    """by prefix: the data, then held-out data if the parts' options ask for it"""
    reused: bool
    notes: Sequence[str] = ()
    """oddities of pairs of other tools"""


@dataclass(frozen=True)
class _Input:
    prefix: str
    manifest: Manifest
    pairs: list[Binidx]
    notes: Sequence[str] = ()

    @property
    def input_shard(self) -> InputShard | None:
        """The part of a divided corpus that this data is; None for complete data."""
        part = self.manifest.made_from.get("part")
        if part is None:
            return None
        worker, of = (
            (part.get("worker"), part.get("of")) if isinstance(part, dict) else (None, None)
        )
        if not isinstance(worker, int) or not isinstance(of, int):
            raise DataError(f"{self.prefix}.manifest.json is damaged: {part} is no part")
        return InputShard(worker, of)


def merge_pairs(
    names: Sequence[str],
    output: str,
    *,
    tokenizer: str | None = None,
    shard_tokens: int | None = None,
    overwrite: bool = False,
) -> Merged:
    """Writes the documents of all inputs under the prefix `output`, without tokenizing anything.

    names: prefixes of pairs, of shards or of parts, or their manifests.  tokenizer: the one that
    made pairs without a manifest.  Raises DataError when they do not fit together, a part is
    missing, or other data is in the way.
    """
    if not output or names_folder(output):
        raise DataError(f"--output {output!r} does not name the joined data; give FOLDER/NAME")
    inputs = [_open_input(manifest_prefix(name), tokenizer) for name in names]
    notes = [note for given in inputs for note in given.notes]
    wanted = Arrangement(shuffle=False)
    if any(given.input_shard for given in inputs):
        # The arrangement was put off until all documents are together; it stands in the manifests.
        inputs = _all_parts(inputs)
        options = inputs[0].manifest.made_from
        names_of_fields = {field.name for field in fields(Arrangement)} & options.keys()
        wanted = Arrangement(**{name: options[name] for name in names_of_fields})
        shard_tokens = shard_tokens or options.get("shard_tokens")
    like = _checked_alike(inputs)
    prefixes = [output, f"{output}_val"][: 1 + (wanted.validation > 0)]
    origin = _origin(inputs, shard_tokens)
    if existing_output.exists(prefixes):
        found = existing_output.reusable(prefixes, origin, overwrite)
        if found is not None:
            return Merged(found, reused=True, notes=notes)

    def describe(writer: OutputWriter) -> Manifest:
        return writer.manifest(like.tokenizer, like.vocab_size, origin, _bytes_per_token(inputs))

    try:
        pairs = [pair for given in inputs for pair in given.pairs]
        store = _store(pairs)
        weights = _weights(inputs, pairs, store)
        # Hashed here: equal documents may lie in different parts, and parts store no digests.
        digests = _digests(store) if wanted.dedup else None
        made, _ = arrange(store, weights, digests, wanted, prefixes, shard_tokens, describe)
    except OSError as error:
        raise DataError(f"cannot write {output}: {error.strerror}") from error
    return Merged(made, reused=False, notes=notes)


def _open_input(prefix: str, tokenizer: str | None) -> _Input:
    manifest = read_manifest(prefix)
    if manifest is None:
        return _open_foreign(prefix, tokenizer)
    if manifest.documents == 0:
        return _Input(prefix, manifest, [])
    return _Input(prefix, manifest, [Binidx(pair) for pair in pair_digests(prefix, manifest)])


def _open_foreign(prefix: str, tokenizer: str | None) -> _Input:
    pair = Binidx(prefix)
    if tokenizer is None:
        raise DataError(
            f"{prefix}.manifest.json does not exist, so the tokenizer of the data is not known; "
            "say it with --tokenizer world (or bytes, or the path of a tokenizer.json)"
        )
    manifest, unclosed = foreign_manifest(prefix, tokenizer)
    note = (
        f"{unclosed} of the {manifest.documents} documents of {prefix} do not end with token 0; "
        "they were taken as they are"
    )
    return _Input(prefix, manifest, [pair], [note] if unclosed else [])


def _all_parts(inputs: Sequence[_Input]) -> list[_Input]:
    """Returns the shards of one run in their order; DataError unless they are all there."""
    common = [_without_own(given) for given in inputs]
    for given, options in zip(inputs, common):
        if given.input_shard is None or options != common[0]:
            raise DataError(
                f"{given.prefix} is not a part of the same run as {inputs[0].prefix}: parts are "
                "made by one command line that differs in --worker only"
            )
    by_worker = {given.input_shard.worker: given for given in inputs if given.input_shard}
    first = inputs[0].input_shard
    wanted = range(first.of if first else 0)
    missing = [str(worker) for worker in wanted if worker not in by_worker]
    if missing:
        raise DataError(f"the parts of --worker {', '.join(missing)} are missing")
    if len(by_worker) != len(inputs):
        raise DataError("a part is given twice")
    return [by_worker[worker] for worker in wanted]


def _without_own(given: _Input) -> dict[str, Any]:
    """Returns the options that the input shards of one run have in common."""
    options = {
        **given.manifest.made_from,
        "of": given.input_shard.of if given.input_shard else None,
    }
    # Each part read its own stretch of the inputs, so that these two always differ.
    return {key: value for key, value in options.items() if key not in ("part", "input_sha256")}


def _checked_alike(inputs: Sequence[_Input]) -> Manifest:
    first = inputs[0].manifest
    for given in inputs:
        for name in ("tokenizer", "vocab_size", "dtype"):
            mine, theirs = getattr(first, name), getattr(given.manifest, name)
            if mine != theirs:
                raise DataError(
                    f"{given.prefix} has {name} {theirs} but {inputs[0].prefix} has {mine}; only "
                    "data of one kind can be joined"
                )
    return first


def _origin(inputs: Sequence[_Input], shard_tokens: int | None) -> dict[str, Any]:
    origin: dict[str, Any] = {"input_sha256": [given.manifest.sha256_bin for given in inputs]}
    masks = [given.manifest.sha256_mask or _unlisted_mask(given) for given in inputs]
    if any(masks):
        # Only where there are masks: data made without them keeps the options it was made from.
        origin |= {"mask_sha256": masks}
    if inputs[0].input_shard:
        origin |= {"parts_of": _without_own(inputs[0])}
    return origin | ({"shard_tokens": shard_tokens} if shard_tokens else {})


def _unlisted_mask(given: _Input) -> str | None:
    """Returns the digests of loss masks no manifest lists (other tools'); None without any."""
    there = [mask_path(pair.prefix) for pair in given.pairs if mask_path(pair.prefix).exists()]
    return " ".join(file_sha256(path) for path in there) or None


def _bytes_per_token(inputs: Sequence[_Input]) -> float | None:
    manifests = [given.manifest for given in inputs if given.manifest.tokens]
    if not manifests or any(m.bytes_per_token is None for m in manifests):
        return None
    tokens = sum(m.tokens for m in manifests)
    return sum((m.bytes_per_token or 0) * m.tokens for m in manifests) / tokens


def _store(pairs: Sequence[Binidx]) -> DocumentReader:
    if not pairs:
        raise DataError("there are no documents in any of the parts")
    sizes = [document_sizes(pair) for pair in pairs]
    files, tokens = [pair.file for pair in pairs], [pair.tokens for pair in pairs]
    return DocumentReader(pairs[0].dtype, files, tokens, np.concatenate(sizes))


def _weights(
    inputs: Sequence[_Input], pairs: Sequence[Binidx], store: DocumentReader
) -> DocumentReader | None:
    """Returns the weights of the documents' tokens, None when no input has a loss mask."""
    masks = [find_mask(given.prefix, given.pairs, given.manifest) for given in inputs]
    # Where one input has a mask, tokens of those without get weight 1 (`open_mask`).
    if not any(masks):
        return None
    files, tokens = [open_mask(pair) for pair in pairs], [pair.tokens for pair in pairs]
    return DocumentReader(np.dtype(np.uint8), files, tokens, store.sizes)


def _digests(store: DocumentReader) -> npt.NDArray[np.void]:
    everything = np.arange(len(store.sizes))
    parts = [document_digests(tokens, sizes) for tokens, sizes in store.read(everything)]
    return np.concatenate([np.zeros(0, f"V{DIGEST_BYTES}"), *parts])
