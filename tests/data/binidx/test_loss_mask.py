"""Loss masks: the right weights with the right tokens, scaled by whole optimizer steps."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from rwkv_train.data.binidx.loss_mask import LossMask, find_mask
from rwkv_train.data.binidx.manifest import Manifest, Shard, joint_sha256, write_manifest
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.binidx.writer import BinidxWriter
from rwkv_train.data.samples.batch import collate
from rwkv_train.data.samples.dataset import TokenDataset, ValidationDataset
from rwkv_train.data.samples.sample_source import StepReading
from rwkv_train.data.samples.token_sources import open_source, pairs_of
from rwkv_train.data.sampling.sample_order import Permutation
from rwkv_train.data.sampling.sampler import SampleNumbers
from rwkv_train.errors import DataError

PRIME, CTX_LEN = 17, 8


def pair_with_mask(folder, weights, name="data"):
    """Token i is i, its weight weights[i]; returns the prefix."""
    with BinidxWriter(folder / name, "uint16") as writer:
        writer.append(np.arange(len(weights)))
    (folder / f"{name}.mask").write_bytes(bytes(weights))
    return str(folder / name)


@pytest.fixture
def weights():
    """For 18 slots of 8 tokens and a last target: 0, 1 and some larger ones."""
    drawn = np.random.default_rng(5).choice([0, 0, 0, 1, 1, 3], size=18 * CTX_LEN + 1)
    return drawn.tolist()


def dataset(prefix, step_samples, windows=1, **options):
    source = Binidx(prefix)
    mask = LossMask([(prefix, source.tokens)])
    return TokenDataset(
        source,
        CTX_LEN,
        Permutation(PRIME),
        loss_mask=mask,
        reading=StepReading(step_samples, windows),
        **options,
    )


def test_a_target_counts_by_the_weight_of_its_own_token(tmp_path):
    prefix = pair_with_mask(tmp_path, [7, 0, 1, 0, 0, 2, 0, 0, 1])
    source = Binidx(prefix)
    held_out = ValidationDataset(source, 8, [0], loss_mask=LossMask([(prefix, 9)]))
    (sample,) = held_out
    assert sample.targets.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    # Token 0 is nobody's target.
    assert sample.mask.tolist() == [0, 1, 0, 0, 2, 0, 0, 1]


def test_the_mean_over_a_whole_step_is_the_weighted_mean_of_its_targets(tmp_path, weights):
    step_samples = 4
    data = dataset(pair_with_mask(tmp_path, weights), step_samples)
    ce = torch.rand(len(weights) + 1, generator=torch.Generator().manual_seed(1))
    for step in range(6):
        samples = [data[n] for n in range(1 + step * step_samples, 1 + (step + 1) * step_samples)]
        batch = collate(samples)
        weighted = (batch.mask * ce[batch.targets]).mean().item()
        targets = batch.targets.flatten().tolist()
        counted = sum(weights[t] for t in targets)
        expected = sum(weights[t] * ce[t].item() for t in targets) / counted
        assert weighted == pytest.approx(expected, rel=1e-6)


def test_each_window_of_the_samples_is_a_step_of_its_own(tmp_path, weights):
    # 2 windows of 4 tokens of 4 samples
    data = dataset(pair_with_mask(tmp_path, weights), 4, windows=2)
    ce = torch.rand(len(weights) + 1, generator=torch.Generator().manual_seed(1))
    for step in range(6):
        group, window = divmod(step, 2)
        batch = collate([data[n] for n in range(1 + group * 4, 5 + group * 4)])
        part = slice(4 * window, 4 * window + 4)
        weighted = (batch.mask * ce[batch.targets])[:, part].mean().item()
        targets = batch.targets[:, part].flatten().tolist()
        counted = sum(weights[t] for t in targets)
        assert counted > 0
        expected = sum(weights[t] * ce[t].item() for t in targets) / counted
        assert weighted == pytest.approx(expected, rel=1e-6)


def test_the_scale_belongs_to_the_step_however_it_is_split(tmp_path, weights):
    data = dataset(pair_with_mask(tmp_path, weights), 4)
    splits = [(4, 1, 1), (2, 2, 1), (2, 1, 2), (1, 2, 2)]
    seen = []
    for micro, accumulate, ranks in splits:
        masks = {}
        for rank in range(ranks):
            for n in SampleNumbers(0, 5, micro, accumulate, rank, ranks):
                masks[n] = data[n].mask.tolist()
        seen.append(masks)
    assert len(seen[0]) == 20
    assert seen[0] == seen[1] == seen[2] == seen[3]


def test_a_step_without_a_counted_token_has_a_mask_of_zeros(tmp_path):
    data = dataset(pair_with_mask(tmp_path, [0] * (18 * CTX_LEN + 1)), 4)
    assert data[1].mask.tolist() == [0.0] * CTX_LEN
    assert not collate([data[1], data[2]]).counts


def test_one_counted_token_makes_a_batch_count(tmp_path):
    data = dataset(pair_with_mask(tmp_path, [0] * (18 * CTX_LEN + 1)), 4)
    other = data[2]._replace(mask=torch.eye(CTX_LEN)[-1])
    assert collate([data[1], other]).counts
    assert collate([data[1]._replace(mask=None)]).counts


def test_sums_are_right_after_their_cache_was_full(tmp_path, weights):
    data = dataset(pair_with_mask(tmp_path, weights), 2)
    first = [data[n].mask.tolist() for n in range(1, 61)]
    assert [data[n].mask.tolist() for n in range(1, 61)] == first
    assert len(data._step_weights._sums) <= 8


def test_a_data_set_with_a_mask_survives_pickling(tmp_path, weights):
    data = dataset(pair_with_mask(tmp_path, weights), 4)
    again = pickle.loads(pickle.dumps(data))
    assert all(torch.equal(again[n].mask, data[n].mask) for n in range(1, 10))


def test_validation_without_a_counted_token_is_refused(tmp_path):
    prefix = pair_with_mask(tmp_path, [0] * 30)
    with pytest.raises(DataError, match="none of the 3 samples of 8 tokens has a token"):
        ValidationDataset(Binidx(prefix), 8, [0, 8, 16], loss_mask=LossMask([(prefix, 30)]))


def test_validation_takes_the_weights_as_they_are(tmp_path, weights):
    prefix = pair_with_mask(tmp_path, weights)
    source = Binidx(prefix)
    mask = LossMask([(prefix, source.tokens)])
    for sample in ValidationDataset(source, 8, [0, 9, 40], loss_mask=mask):
        assert sample.mask.tolist() == [weights[t] for t in sample.targets.tolist()]


@pytest.fixture
def shards(tmp_path, weights):
    """The same tokens and weights in three shards; returns their prefix."""
    cuts = [0, 50, 51, len(weights)]
    described = []
    for number, (start, end) in enumerate(pairwise(cuts)):
        name = f"all-{number:05d}"
        with BinidxWriter(tmp_path / name, "uint16") as writer:
            writer.append(np.arange(start, end))
        (tmp_path / f"{name}.mask").write_bytes(bytes(weights[start:end]))
        described.append(Shard(name, end - start, 1, "x"))
    manifest = Manifest(
        "bytes", 257, len(weights), 3, "uint16", joint_sha256(described), shards=tuple(described)
    )
    write_manifest(tmp_path / "all", manifest)
    return str(tmp_path / "all")


def test_sidecars_of_shards_read_as_one(shards, weights):
    source = open_source(shards, "binidx")
    mask = find_mask(shards, pairs_of(source), None)
    assert mask.tokens == len(weights)
    for offset, length in ((0, len(weights)), (45, 10), (50, 1), (49, 3), (51, 20), (10, 0)):
        assert mask.get(offset, length).tolist() == weights[offset : offset + length]


def test_one_missing_sidecar_of_several_is_told(shards, tmp_path):
    pairs = pairs_of(open_source(shards, "binidx"))
    (tmp_path / "all-00001.mask").unlink()
    with pytest.raises(DataError, match=r"all-00001.mask is missing, but .*all-00000.mask says"):
        find_mask(shards, pairs, None)


def test_a_sidecar_that_the_manifest_promises_must_be_there(tmp_path):
    prefix = pair_with_mask(tmp_path, [1] * 9)
    manifest = Manifest("bytes", 257, 9, 1, "uint16", "x", sha256_mask="y", supervised_tokens=9)
    pairs = [Binidx(prefix)]
    assert find_mask(prefix, pairs, manifest).get(0, 9).tolist() == [1] * 9
    (tmp_path / "data.mask").unlink()
    with pytest.raises(DataError, match=r"data.mask is missing, but .*data.manifest.json says"):
        find_mask(prefix, pairs, manifest)
    assert find_mask(prefix, pairs, replace(manifest, sha256_mask=None)) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"1234", "has 4 bytes, but .*data.bin holds 9 tokens"), (b"", "data.mask is empty")],
)
def test_a_sidecar_of_other_data_is_refused(content, message, tmp_path):
    prefix = pair_with_mask(tmp_path, [1] * 9)
    (tmp_path / "data.mask").write_bytes(content)
    with pytest.raises(DataError, match=message):
        find_mask(prefix, [Binidx(prefix)], None)
