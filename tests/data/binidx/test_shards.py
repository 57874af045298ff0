"""Shards: cut at documents, read as one array, complete or not readable at all."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from rwkv_train.data.binidx.manifest import joint_sha256, read_manifest, write_manifest
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.convert.pipeline import ConvertOptions, convert
from rwkv_train.data.convert.select import Arrangement
from rwkv_train.data.samples.dataset import TokenDataset
from rwkv_train.data.samples.token_sources import open_source
from rwkv_train.data.sampling.magic_prime import magic_prime
from rwkv_train.data.sampling.sample_order import Permutation
from rwkv_train.errors import DataError
from tests.data.corpora import write_jsonl

TEXTS = ["a", "bb", "cccccc", "d", "", "eeee", "f", "g"]


def options(folder, **changes):
    given = {"arrangement": Arrangement(shuffle=False), "tokenizer": "bytes", "shard_tokens": 5}
    return ConvertOptions([write_jsonl(folder, TEXTS)], str(folder / "out"), **(given | changes))


def test_a_shard_ends_with_a_document_and_is_at_most_as_long_as_asked(tmp_path):
    convert(options(tmp_path))
    shards = read_manifest(tmp_path / "out").shards
    # Sizes with the final 0: 2 3 | 7 (too long alone) | 2 1 | 5 | 2 2.
    assert [(s.name, s.tokens, s.documents) for s in shards] == [
        ("out-00000", 5, 2),
        ("out-00001", 7, 1),
        ("out-00002", 3, 2),
        ("out-00003", 5, 1),
        ("out-00004", 4, 2),
    ]
    assert Binidx(tmp_path / "out-00002").sizes.tolist() == [2, 1]
    assert not (tmp_path / "out.bin").exists()


def test_reads_across_the_borders_of_shards_give_the_one_pairs_tokens(tmp_path):
    convert(options(tmp_path))
    convert(replace(options(tmp_path, shard_tokens=None), prefix=str(tmp_path / "one")))
    one = open_source(str(tmp_path / "one"), "binidx")
    for name in ("out", "out.manifest.json"):
        source = pickle.loads(pickle.dumps(open_source(str(tmp_path / name), "binidx")))
        assert source.tokens == one.tokens == 24
        for offset in range(24):
            for length in range(25 - offset):
                tokens = source.get(offset, length)
                assert tokens.dtype == np.int64
                assert tokens.tolist() == one.get(offset, length).tolist()
        for offset, length in ((-1, 2), (23, 2), (0, 25), (3, -1)):
            with pytest.raises(DataError, match="holds 24 tokens"):
                source.get(offset, length)


def test_one_pass_of_the_sampler_covers_the_union_of_shards_once(tmp_path):
    convert(options(tmp_path, arrangement=Arrangement(repeats=9)))
    source = open_source(str(tmp_path / "out"), "binidx")
    prime = magic_prime(source.tokens, 3)
    dataset = TokenDataset(source, 3, Permutation(prime))
    offsets = sorted(dataset.offset(n) for n in range(1, prime + 1))
    assert offsets == [3 * i for i in range(prime)]
    for n in range(1, prime + 1):
        assert dataset[n][0].tolist() == source.get(dataset.offset(n), 3).tolist()


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "out-00001.idx").unlink(),
        lambda folder: (folder / "out-00004.bin").unlink(),
        lambda folder: (folder / "out-00000.bin").rename(folder / "out-00003.bin"),
        lambda folder: [
            (folder / f"out-00000.{e}").replace(folder / f"out-00001.{e}") for e in ("bin", "idx")
        ],
    ],
)
def test_an_incomplete_set_of_shards_cannot_be_opened_and_is_made_again(damage, tmp_path):
    convert(options(tmp_path))
    sound = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    damage(tmp_path)
    with pytest.raises(DataError, match="out-0000"):
        open_source(str(tmp_path / "out"), "binidx")
    assert not convert(options(tmp_path)).reused
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == sound
    assert convert(options(tmp_path)).reused


def test_shards_that_are_no_longer_needed_are_removed(tmp_path):
    convert(options(tmp_path))
    assert len(list(tmp_path.glob("out*"))) == 11
    convert(options(tmp_path, shard_tokens=15, overwrite=True))
    names = sorted(path.name for path in tmp_path.glob("out*"))
    assert names == [
        "out-00000.bin",
        "out-00000.idx",
        "out-00001.bin",
        "out-00001.idx",
        "out.manifest.json",
    ]
    convert(options(tmp_path, shard_tokens=None, overwrite=True))
    assert sorted(p.name for p in tmp_path.glob("out*")) == [
        "out.bin",
        "out.idx",
        "out.manifest.json",
    ]


def test_a_manifest_whose_shards_do_not_add_up_is_damaged(tmp_path):
    convert(options(tmp_path))
    manifest = read_manifest(tmp_path / "out")
    fewer = manifest.shards[1:]
    elsewhere = [replace(manifest.shards[0], name="../out-00000"), *fewer]
    for wrong in (
        replace(manifest, shards=fewer),
        replace(manifest, tokens=manifest.tokens + 1),
        replace(manifest, documents=1),
        replace(manifest, sha256_bin="0" * 64),
        replace(manifest, shards=elsewhere, sha256_bin=joint_sha256(elsewhere)),
    ):
        write_manifest(tmp_path / "out", wrong)
        with pytest.raises(DataError, match=r"manifest\.json is damaged"):
            open_source(str(tmp_path / "out"), "binidx")


def test_magic_primes_of_the_usual_lengths_are_in_the_manifest(tmp_path):
    texts = ["x" * 999] * 5
    made = ConvertOptions([write_jsonl(tmp_path, texts)], str(tmp_path / "out"), tokenizer="bytes")
    convert(made)
    # 5000 tokens: 9 slots of 512, 4 of 1024 (largest primes 2 mod 3 up to 8 and 3).
    assert read_manifest(tmp_path / "out").magic_primes == {"512": 5, "1024": 2}


@pytest.mark.parametrize("value", [0, -3])
def test_an_impossible_shard_size_is_refused(value, tmp_path):
    with pytest.raises(DataError, match="--shard_tokens is"):
        convert(options(tmp_path, shard_tokens=value))
