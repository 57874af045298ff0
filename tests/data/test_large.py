"""Sizes beyond 32 bits, on files with holes that take no disk space."""

from __future__ import annotations

import resource
from dataclasses import replace

import numpy as np
import pytest

from rwkv_train.data.binidx.document_reader import DocumentReader, document_sizes
from rwkv_train.data.binidx.layout import HEADER, MAGIC
from rwkv_train.data.binidx.manifest import Manifest, Shard, joint_sha256, write_manifest
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.samples.dataset import TokenDataset
from rwkv_train.data.samples.token_sources import open_source
from rwkv_train.data.sampling.magic_prime import magic_prime
from rwkv_train.data.sampling.sample_order import Permutation
from rwkv_train.data.sampling.sampler import SampleNumbers, slot

ITEM = 2**31 - 1


def sparse_pair(prefix, items, marks):
    """A pair of `items` items of 2^31 - 1 tokens, all 0 but those in `marks`: token -> id."""
    tokens = items * ITEM
    with (prefix.parent / f"{prefix.name}.bin").open("wb") as file:
        file.truncate(2 * tokens)
        for token, value in marks.items():
            file.seek(2 * token)
            file.write(np.array([value], "<u2").tobytes())
    pointers = 2 * ITEM * np.arange(items, dtype="<i8")
    index = HEADER.pack(MAGIC, 1, 8, items, items + 1)
    index += np.full(items, ITEM, "<i4").tobytes() + pointers.tobytes()
    index += np.arange(items + 1, dtype="<i8").tobytes()
    (prefix.parent / f"{prefix.name}.idx").write_bytes(index)
    return tokens


@pytest.fixture
def folder(tmp_path):
    """Skips where a file system cannot hold sparse files of this size."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY:
        pytest.skip("file sizes are limited here")
    try:
        with (tmp_path / "probe").open("wb") as file:
            file.truncate(2**38)
    except OSError as error:
        pytest.skip(f"no large sparse files here: {error.strerror}")
    (tmp_path / "probe").unlink()
    return tmp_path


def test_tokens_beyond_2_to_the_32_are_read_where_they_are(folder):
    # 100 billion tokens, 200 GB.
    far = 47 * ITEM - 5
    tokens = sparse_pair(folder / "data", 47, {2**32 + 7: 41, 2**36: 42, far: 43})
    assert tokens > 10**11
    pair = open_source(str(folder / "data"), "binidx")
    assert pair.tokens == tokens
    for token, value in ((2**32 + 7, 41), (2**36, 42), (far, 43)):
        assert pair.get(token - 1, 3).tolist() == [0, value, 0]
    sizes = document_sizes(pair)
    assert sizes.sum(dtype=np.int64) == tokens
    lengths, starts = np.array([3, 2], np.int32), np.array([far - 1, 2**36])
    store = DocumentReader(pair.dtype, [pair.file], [tokens], lengths, starts)
    ((found, _),) = store.read(np.arange(2))
    assert found.tolist() == [0, 43, 0, 42, 0]


def test_samples_of_a_hundred_billion_tokens_are_addressed_exactly(folder):
    ctx_len = 4096
    tokens = sparse_pair(folder / "data", 47, {})
    prime = magic_prime(tokens, ctx_len)
    n = next(n for n in range(1, 1000) if slot(n, prime) * ctx_len > 2**35)
    start = slot(n, prime) * ctx_len
    with (folder / "data.bin").open("r+b") as file:
        file.seek(2 * start)
        file.write(np.arange(1, ctx_len + 2, dtype="<u2").tobytes())
    dataset = TokenDataset(open_source(str(folder / "data"), "binidx"), ctx_len, Permutation(prime))
    x, y = dataset[n][:2]
    assert x.tolist() == list(range(1, ctx_len + 1))
    assert y.tolist() == list(range(2, ctx_len + 2))
    numbers = iter(SampleNumbers(10**9, 10**9, 8, 1, 3, 64))
    assert next(numbers) == 1 + 10**9 * 8 * 64 + 3


def test_shards_are_one_array_beyond_2_to_the_32(folder):
    marks = [{ITEM * 2 - 1: 7}, {0: 8, ITEM: 9}]
    sizes = [sparse_pair(folder / f"data-{i:05d}", 2, marks[i]) for i in range(2)]
    shards = [Shard(f"data-{i:05d}", size, 2, "0" * 64) for i, size in enumerate(sizes)]
    manifest = Manifest("world", 65536, sum(sizes), 4, "uint16", joint_sha256(shards))
    write_manifest(folder / "data", replace(manifest, shards=shards))
    source = open_source(str(folder / "data"), "binidx")
    assert source.tokens == 4 * ITEM > 2**32
    assert source.get(2 * ITEM - 2, 4).tolist() == [0, 7, 8, 0]
    assert source.get(3 * ITEM, 1).tolist() == [9]
    assert isinstance(Binidx(folder / "data-00000").tokens, int)
