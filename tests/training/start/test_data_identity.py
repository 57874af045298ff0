"""Identity of data with many shards and of many parts: swapped shards, and what is read for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.sparse_shards import write_sparse_shards
from rwkv_train.config.schema import DataConfig
from rwkv_train.data.binidx.writer import BinidxWriter
from rwkv_train.data.samples.token_sources import pairs_of
from rwkv_train.training.start import data_identity
from rwkv_train.training.start.data_files import DataFiles, open_data_files, open_files
from rwkv_train.training.start.data_identity import (
    DataIdentity,
    TrainingData,
    identify,
    kinship,
    same_content,
    same_documents,
)

# Of all tokens the blocks that `sampled` reads hold one in 30 or so.
SHARDS, TOKENS = 100, 80_000


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    write_sparse_shards(tmp_path / "data", SHARDS, TOKENS, documents=8)
    return tmp_path / "data"


def opened(prefix: Path, resets: int = 0) -> DataFiles:
    return open_files(str(prefix), "binidx", DataConfig(reset_at_documents=bool(resets)))


def swap(prefix: Path, first: int, second: int) -> None:
    a, b = (prefix.with_name(f"{prefix.name}-{number:05d}.bin") for number in (first, second))
    a.rename(prefix.with_name("spare"))
    b.rename(a)
    prefix.with_name("spare").rename(b)


def test_shards_that_have_changed_places_are_other_data(prefix: Path) -> None:
    before = identify(opened(prefix))
    swap(prefix, 41, 42)
    files = opened(prefix)
    now = identify(files)
    # Neither the sampled blocks nor the manifest see it: the marks are four tokens of 80000.
    assert (now.tokens, now.sampled, now.manifest) == (
        before.tokens,
        before.sampled,
        before.manifest,
    )
    assert kinship(before, now, files) == "replaced" and not same_content([before], [now])
    swap(prefix, 41, 42)
    assert kinship(before, identify(opened(prefix)), opened(prefix)) == "same"


def test_a_state_that_tells_nothing_of_shards_is_compared_by_what_it_tells(prefix: Path) -> None:
    files = opened(prefix)
    now = identify(files)
    values = now.as_dict()
    del values["shards"], values["blocks"]
    older = DataIdentity.from_dict(values)
    assert older.shards is None and kinship(older, now, files) == "same"
    assert same_content([older], [now])


def test_data_that_has_grown_by_shards_is_compared_shard_by_shard(tmp_path: Path) -> None:
    write_sparse_shards(tmp_path / "small", 60, TOKENS)
    before = identify(opened(tmp_path / "small"))
    write_sparse_shards(tmp_path / "large", 70, TOKENS)
    files = opened(tmp_path / "large")
    assert kinship(before, identify(files), files) == "grown"
    swap(tmp_path / "large", 30, 65)
    files = opened(tmp_path / "large")
    assert identify(files, before.tokens).sampled == before.sampled
    assert kinship(before, identify(files), files) == "replaced"


def test_starts_of_documents_are_compared_without_reading_all_indexes(
    prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert identify(opened(prefix)).documents is None
    with monkeypatch.context() as patched:
        # 100 pairs are more than the few whose indexes are read.
        patched.setattr(data_identity, "_by_indexes", lambda pairs: pytest.fail("read all"))
        before = identify(opened(prefix, resets=1))
        assert same_documents(before, opened(prefix, resets=1))
    write_sparse_shards(tmp_path / "data", SHARDS, TOKENS, documents=9)
    assert not same_documents(before, opened(prefix, resets=1))
    # A state of an earlier version holds the digest of all indexes.
    files = opened(prefix, resets=1)
    older = replace(before, documents=data_identity._by_indexes(pairs_of(files.source)))
    assert same_documents(older, files)
    assert not same_documents(replace(older, documents="0" * 64), files)


def parts(folder: Path, seeds: list[int], tokens: int = 500) -> TrainingData:
    """A mixture with one small pair for each seed."""
    folder.mkdir()
    for place, seed in enumerate(seeds):
        with BinidxWriter(folder / f"p{place}", "uint16") as writer:
            writer.append(np.random.default_rng(seed).integers(1, 200, tokens, np.uint16))
    listed = ",".join(f"{folder}/p{place}:1" for place in range(len(seeds)))
    return TrainingData.of(open_data_files(DataConfig(data_file=listed)).parts)


def test_parts_are_matched_with_those_of_the_run_before(tmp_path: Path) -> None:
    known = parts(tmp_path / "a", [1, 2, 3, 3]).identities
    now = parts(tmp_path / "b", [3, 1, 4, 3])
    # 3 keeps its own place where it has one, and takes the first free one else.
    assert now.kin_of(known) == {0: (2, "same"), 1: (0, "same"), 3: (3, "same")}


def test_many_other_parts_are_not_read_for_each_of_as_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 12
    monkeypatch.setattr(data_identity, "_FEW_PAIRS", 10)
    known = parts(tmp_path / "a", list(range(count)), tokens=300).identities
    now = parts(tmp_path / "b", list(range(1000, 1000 + count)), tokens=400)
    read, identify_once = [], data_identity.identify

    def counted(files: DataFiles, tokens: int | None = None, *, blocks: int = 64) -> DataIdentity:
        read.append(files.name)
        return identify_once(files, tokens, blocks=blocks)

    monkeypatch.setattr(data_identity, "identify", counted)
    assert now.kin_of(known) == {}
    # Each with the one in its own place.
    assert len(read) == count


def test_parts_of_many_are_sampled_at_fewer_places(
    prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = opened(prefix)
    monkeypatch.setattr(data_identity, "_BLOCKS_OF_ALL", 40)
    few, many = TrainingData.of([files]), TrainingData.of([files] * 5)
    assert few.identities[0].blocks == 40 and many.identities[0].blocks == 8
    assert few.identities[0].sampled != many.identities[0].sampled
    # A run that had more parts before knows this one again.
    assert few.kin_of(many.identities) == {0: (0, "same")}
