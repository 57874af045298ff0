"""More shards than a process may have descriptors, and what is told of those that are missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.sparse_shards import shard_mark, write_sparse_shards
from rwkv_train.data.binidx import index_file
from rwkv_train.data.samples.document_starts import document_starts
from rwkv_train.data.samples.sharded_tokens import ShardedTokens
from rwkv_train.data.samples.token_sources import open_source
from rwkv_train.data.storage.recently_used import RecentlyUsed
from rwkv_train.errors import DataError
from tests.checkout import ROOT

SHARDS, TOKENS, DOCUMENTS = 300, 1000, 4

# Everything that training reads of shards, in workers too, with room for a few descriptors only.
FEW = """
import json, os, resource, sys
import torch
from torch.utils.data import DataLoader
from benchmarks.sparse_shards import shard_mark
from rwkv_train.data.binidx.loss_mask import find_mask
from rwkv_train.data.samples.batch import collate
from rwkv_train.data.samples.dataset import TokenDataset
from rwkv_train.data.samples.document_starts import document_starts
from rwkv_train.data.samples.sample_source import StepReading
from rwkv_train.data.samples.token_sources import open_source
from rwkv_train.data.sampling.sample_order import Permutation

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
source = open_source(sys.argv[1], "binidx")
mask = find_mask(sys.argv[1], source.pairs, None)
starts = document_starts(source)
data = TokenDataset(source, 500, Permutation(593), vocab_size=257, loss_mask=mask,
                    reading=StepReading(1), starts=starts)
seen = []
for batch in DataLoader(data, batch_size=1, sampler=range(1, 401), num_workers=2,
                        collate_fn=collate):
    offset = data.offset(batch.numbers[0])
    shard, place = divmod(offset, 1000)
    row = batch.tokens[0].tolist()
    expected = shard_mark(shard).tolist() if place == 0 else [0, 0, 0, 0]
    seen.append(row[:4] == expected and batch.reset[0].nonzero().flatten().tolist() == [0, 250])
    assert not any(batch.faults), batch.faults
of_maps = sum("many-" in line for line in open("/proc/self/maps"))
print(json.dumps([len(source.pairs), all(seen), len(os.listdir("/proc/self/fd")) < 40, of_maps]))
"""


# The tools on the same, merged into one pair.
TOOLS = """
import resource, sys
import make_data
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
prefix, joined = sys.argv[1:]
assert not make_data.main(["--inspect", prefix])
assert not make_data.main(["--merge", prefix, "-o", joined])
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefix of 300 shards of 1000 tokens, four documents each, with loss masks of ones."""
    prefix = tmp_path_factory.mktemp("shards") / "many"
    write_sparse_shards(prefix, SHARDS, TOKENS, DOCUMENTS)
    for path in prefix.parent.glob("*.bin"):
        path.with_suffix(".mask").write_bytes(b"\1" * TOKENS)
    return prefix


def test_three_hundred_shards_are_read_with_64_descriptors(many: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FEW, str(many)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "src:."},
        capture_output=True,
        text=True,
    )
    # Index maps are those of the workers, who look for documents: none here.
    assert ended.stdout.strip() == "[300, true, true, 0]", ended.stderr


def test_tools_read_three_hundred_shards_with_64_descriptors(many: Path, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", TOOLS, str(many), str(tmp_path / "joined")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "src:."},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    # Eight shards have a line each, and the others one.
    assert ended.stdout.count("idx: version 1") == 8
    assert "... and 292 more shards" in ended.stdout
    assert "1200 documents, 300000 tokens" in ended.stdout
    tokens = np.fromfile(tmp_path / "joined.bin", "<u2").reshape(SHARDS, TOKENS)
    assert all(tokens[n, :4].tolist() == shard_mark(n).tolist() for n in range(SHARDS))
    weights = np.fromfile(tmp_path / "joined.mask", np.uint8)
    assert weights.size == SHARDS * TOKENS and weights.all()


def test_every_shards_tokens_are_found_by_number(many: Path) -> None:
    source = open_source(str(many), "binidx")
    assert source.tokens == SHARDS * TOKENS
    for number in (0, 1, 250, 251, 298, 299):
        first = number * TOKENS
        assert source.get(first, 5).tolist() == [*shard_mark(number).tolist(), 0]
        if number:
            across = source.get(first - 2, 4).tolist()
            assert across == [0, 0, *shard_mark(number).tolist()[:2]]


def test_few_indexes_are_mapped_at_a_time(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = RecentlyUsed(lambda: 5)
    monkeypatch.setattr(index_file, "_mapped_now", queue)
    starts = document_starts(open_source(str(many), "binidx"))
    for number in range(SHARDS):
        found = starts.among(number * TOKENS, TOKENS)
        assert np.flatnonzero(found).tolist() == [0, 250, 500, 750]
        lines = Path("/proc/self/maps").read_text().splitlines()
        assert sum(str(many) in line for line in lines) == min(number + 1, 5) == len(queue)


def test_a_window_over_several_shards_has_the_starts_of_all(many: Path) -> None:
    starts = document_starts(open_source(str(many), "binidx"))
    found = starts.among(1990, 2020)
    assert np.flatnonzero(found).tolist() == [10 + 250 * i for i in range(9)]


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    write_sparse_shards(tmp_path / "data", 20, 100)
    return tmp_path / "data"


def refusal(prefix: Path) -> str:
    with pytest.raises(DataError) as raised:
        open_source(str(prefix), "binidx")
    return raised.value.in_one_line()


def test_missing_shards_are_counted_and_the_first_ones_named(damaged: Path) -> None:
    for number in range(3, 12):
        damaged.with_name(f"data-{number:05d}.bin").unlink()
    damaged.with_name("data-00003.idx").unlink()
    told = refusal(damaged)
    assert f"9 of the 20 shards that {damaged}.manifest.json lists lack files: " in told
    assert (
        "data-00003.bin, data-00003.idx, data-00004.bin, data-00005.bin and 6 more; a copy" in told
    )
    assert "copy the data" in told


def test_a_shard_that_cannot_be_reached_is_not_told_as_missing(damaged: Path) -> None:
    # Whoever may not look into its folder gets another fault of this kind.
    loop = damaged.with_name("data-00004.bin")
    loop.unlink()
    loop.symlink_to(loop)
    told = refusal(damaged)
    assert told.startswith(f"cannot read {loop}: ") and "lack files" not in told


def test_a_half_copied_shard_is_told_beside_the_missing_ones(damaged: Path) -> None:
    damaged.with_name("data-00007.bin").unlink()
    os.truncate(damaged.with_name("data-00002.bin"), 64)
    told = refusal(damaged)
    assert "1 of the 20 shards" in told and "data-00007.bin; a copy" in told
    assert "data-00002.bin has 64 bytes but its index needs 200" in told


def test_of_many_damaged_shards_two_are_told(damaged: Path) -> None:
    for number in range(5):
        os.truncate(damaged.with_name(f"data-{number:05d}.bin"), 64)
    told = refusal(damaged)
    assert "5 of the 20 shards" in told and "cannot be used" in told
    assert "data-00001.bin has 64" in told and "data-00002" not in told and "and 3 more" in told


def test_a_shard_of_another_size_than_the_manifest_says_is_named(damaged: Path) -> None:
    other = damaged.with_name("other")
    write_sparse_shards(other, 1, 90)
    for ending in ("bin", "idx"):
        other.with_name(f"other-00000.{ending}").replace(damaged.with_name(f"data-00004.{ending}"))
    told = refusal(damaged)
    assert "data-00004 holds 90 tokens (uint16) but" in told and "describes 100 (uint16)" in told


def test_shards_survive_pickling(many: Path) -> None:
    import pickle

    source = pickle.loads(pickle.dumps(open_source(str(many), "binidx")))
    assert isinstance(source, ShardedTokens)
    assert source.get(299 * TOKENS, 4).tolist() == shard_mark(299).tolist()
