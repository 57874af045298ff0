"""Data sets of any size that take no room on the disk: shards whose tokens are holes in files.

Every shard's first tokens are its number, so that reads can be checked; the others are zeros.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from rwkv_train.data.binidx.layout import HEADER, MAGIC, MAX_ITEM_TOKENS, VERSION, dtype_code
from rwkv_train.data.binidx.manifest import Manifest, Shard, joint_sha256, write_manifest

# Tokens in front of a shard that tell its number, in base 251: ids of the smallest vocabulary.
MARK_TOKENS = 4
_BASE = 251
_DTYPE = np.dtype("<u2")


def write_sparse_shards(prefix: Path, shards: int, shard_tokens: int, documents: int = 1) -> None:
    """Writes `shards` pairs of one size and their manifest under `prefix`.

    documents: of a shard, of one length.  The digests of the manifest are made up: nothing that
    reads all tokens accepts them.
    """
    assert shard_tokens >= MARK_TOKENS, "the mark of a shard needs room"
    index = _index(shard_tokens, documents)
    names = [f"{prefix.name}-{number:05d}" for number in range(shards)]
    for number, name in enumerate(names):
        (prefix.parent / f"{name}.idx").write_bytes(index)
        with (prefix.parent / f"{name}.bin").open("wb") as file:
            file.write(shard_mark(number).tobytes())
            os.truncate(file.fileno(), shard_tokens * _DTYPE.itemsize)
    listed = [Shard(name, shard_tokens, documents, "0" * 64) for name in names]
    write_manifest(
        prefix,
        Manifest(
            tokenizer="bytes",
            vocab_size=257,
            tokens=shards * shard_tokens,
            documents=shards * documents,
            dtype=_DTYPE.name,
            sha256_bin=joint_sha256(listed),
            shards=listed,
        ),
    )


def shard_mark(number: int) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    """Returns the first tokens of shard `number`, in [1, 251]."""
    digits = [number // _BASE**place % _BASE + 1 for place in range(MARK_TOKENS)]
    return np.array(digits, _DTYPE)


def _index(tokens: int, documents: int) -> bytes:
    """Returns the .idx of documents of one length, the last one longer by the rest."""
    size = tokens // documents
    sizes = np.full(documents, size, "<i8")
    sizes[-1] += tokens - size * documents
    assert 0 < sizes.max() <= MAX_ITEM_TOKENS, f"{documents} documents are too few or too many"
    pointers = (np.cumsum(sizes) - sizes) * _DTYPE.itemsize
    header: bytes = HEADER.pack(MAGIC, VERSION, dtype_code(_DTYPE), documents, documents + 1)
    bounds = np.arange(documents + 1, dtype="<i8")
    lists = (sizes.astype("<i4"), pointers, bounds)
    return b"".join([header, *(numbers.tobytes() for numbers in lists)])
