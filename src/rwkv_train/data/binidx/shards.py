"""Writes documents to one pair or to several of bounded size, and publishes all outputs at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rwkv_train.data.binidx.document_reader import WeightedDocuments
from rwkv_train.data.binidx.layout import bin_path, idx_path, mask_path
from rwkv_train.data.binidx.manifest import (
    Manifest,
    Shard,
    joint_mask_sha256,
    joint_sha256,
    manifest_path,
    read_manifest,
    shard_prefixes,
    usual_magic_primes,
    write_manifest,
)
from rwkv_train.data.binidx.writer import BinidxWriter, publish_pairs
from rwkv_train.errors import DataError

Batches = Iterable[WeightedDocuments]
Describe = Callable[["OutputWriter"], Manifest]


class OutputWriter:
    """Documents under one prefix: one pair, or shards of at most `shard_tokens` tokens each.

    A shard ends with a whole document; one that is longer than `shard_tokens` has a shard of its
    own. A `masked` one writes a loss mask next to each. Nothing has its final name before
    `publish_outputs`.
    """

    def __init__(
        self,
        prefix: str,
        dtype: np.dtype[Any],
        shard_tokens: int | None = None,
        *,
        masked: bool = False,
    ) -> None:
        self.prefix = prefix
        self.dtype = dtype
        self._masked = masked
        self._shard_tokens = shard_tokens
        self.writers: list[BinidxWriter] = []
        self._begin()

    @property
    def tokens(self) -> int:
        return sum(writer.tokens for writer in self.writers)

    @property
    def documents(self) -> int:
        return sum(writer.documents for writer in self.writers)

    def append(
        self,
        tokens: npt.NDArray[Any],
        sizes: npt.NDArray[np.int32],
        weights: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        """Adds documents that lie one after another in `tokens`, with weights if it is masked."""
        if self._shard_tokens is None:
            self.writers[-1].append_documents(tokens, sizes, weights)
            return
        ends = np.cumsum(sizes, dtype=np.int64)
        document = token = 0
        while document < len(sizes):
            writer = self.writers[-1]
            limit = token + self._shard_tokens - writer.tokens
            # The last document that still ends within the shard.
            last = int(np.searchsorted(ends, limit, "right"))
            if last <= document and writer.tokens > 0:
                self._begin()
                continue
            # Into an empty shard goes a document of any length.
            last = max(last, document + 1)
            end = int(ends[last - 1])
            of_tokens = None if weights is None else weights[token:end]
            writer.append_documents(tokens[token:end], sizes[document:last], of_tokens)
            document, token = last, end

    def shards(self) -> list[Shard]:
        """Returns the manifest's entries for the shards; none when there is one pair."""
        if self._shard_tokens is None:
            return []
        return [
            Shard(Path(w.prefix).name, w.tokens, w.documents, w.sha256, w.sha256_mask)
            for w in self.writers
        ]

    def manifest(
        self,
        tokenizer: str,
        vocab_size: int,
        made_from: Mapping[str, Any],
        bytes_per_token: float | None,
    ) -> Manifest:
        """Returns the manifest of the documents written."""
        shards = self.shards()
        return Manifest(
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            tokens=self.tokens,
            documents=self.documents,
            dtype=self.dtype.name,
            sha256_bin=joint_sha256(shards) if shards else self.writers[0].sha256,
            made_from=made_from,
            shards=tuple(shards),
            magic_primes=usual_magic_primes(self.tokens),
            bytes_per_token=bytes_per_token,
            sha256_mask=joint_mask_sha256(shards) if shards else self.writers[0].sha256_mask,
            supervised_tokens=sum(w.supervised_tokens for w in self.writers)
            if self._masked
            else None,
        )

    def abort(self) -> None:
        """Removes the files that have no final name yet."""
        for writer in self.writers:
            writer.abort()

    def _begin(self) -> None:
        if self.writers:
            # Closes its files: there may be more shards than a process can hold open.
            self.writers[-1].finish()
        number = len(self.writers)
        name = self.prefix if self._shard_tokens is None else f"{self.prefix}-{number:05d}"
        self.writers.append(BinidxWriter(name, self.dtype, masked=self._masked))


def write_outputs(
    parts: Mapping[str, Batches],
    dtype: np.dtype[Any],
    shard_tokens: int | None,
    describe: Describe,
    *,
    masked: bool = False,
) -> dict[str, Manifest]:
    """Writes the documents of each prefix under temporary names, then publishes all of them.

    Only the first prefix is cut into shards; masked: the batches have weights. Whatever is raised
    on the way, files without their final names are removed.
    """
    with ExitStack() as cleanup:
        outputs: list[OutputWriter] = []
        for prefix, batches in parts.items():
            output = OutputWriter(prefix, dtype, None if outputs else shard_tokens, masked=masked)
            cleanup.callback(output.abort)
            outputs.append(output)
            for tokens, sizes, weights in batches:
                output.append(tokens, sizes, weights)
        # Published pairs are complete by then; abort() leaves them alone.
        return publish_outputs(outputs, describe, cleanup)


def write_empty(prefix: str, dtype: np.dtype[Any], describe: Describe) -> dict[str, Manifest]:
    """Writes only a manifest, which says that there are no documents."""
    # The index first: killed half way, this leaves nothing that can be opened.
    for path in (idx_path(prefix), bin_path(prefix), mask_path(prefix)):
        path.unlink(missing_ok=True)
    output = OutputWriter(prefix, dtype)
    manifest = describe(output)
    output.abort()
    write_manifest(prefix, manifest)
    return {prefix: manifest}


def publish_outputs(
    outputs: Sequence[OutputWriter], describe: Describe, cleanup: ExitStack
) -> dict[str, Manifest]:
    """Gives pairs and manifests their final names, replacing what was there.

    Whenever this is interrupted, everything that can be opened is correct: see `publish_pairs`.
    """
    manifests = {output.prefix: describe(output) for output in outputs}

    def replace_manifests() -> None:
        for output in outputs:
            _remove_older(output)
            # Before the manifest is written: it must go whatever fails from then on.
            cleanup.callback(_remove_orphan, output)
            write_manifest(output.prefix, manifests[output.prefix])

    writers = [writer for output in outputs for writer in output.writers]
    # Between the old indexes' end and the new ones' appearance: no manifest ever stands next
    # to a pair that can be opened and is not the one it describes.
    publish_pairs(writers, between=replace_manifests)
    return manifests


def older_prefixes(prefix: str) -> list[str]:
    """Returns the prefixes of the pairs that belong to the data under `prefix` now."""
    try:
        manifest = read_manifest(prefix)
    except DataError:
        manifest = None
    shards = [] if manifest is None else shard_prefixes(prefix, manifest.shards)
    return [prefix, *shards]


def _remove_older(output: OutputWriter) -> None:
    """Removes pairs that the new manifest will not speak of, the index first."""
    kept = {writer.prefix for writer in output.writers}
    for prefix in older_prefixes(output.prefix):
        if prefix not in kept:
            for path in (idx_path, bin_path, mask_path):
                path(prefix).unlink(missing_ok=True)


def _remove_orphan(output: OutputWriter) -> None:
    """Removes the manifest of data that was not completed."""
    if not all(idx_path(writer.prefix).exists() for writer in output.writers):
        manifest_path(output.prefix).unlink(missing_ok=True)
