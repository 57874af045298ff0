"""Samples: the right window, checked ids, the same in every worker."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from rwkv_train.data.samples.batch import collate
from rwkv_train.data.samples.dataset import TokenDataset, ValidationDataset, evenly_spread_samples
from rwkv_train.data.sampling.magic_prime import magic_prime
from rwkv_train.data.sampling.sample_order import Permutation, RandomStarts
from rwkv_train.data.sampling.sampler import SampleNumbers
from rwkv_train.errors import DataError
from tests.data.samples.token_arrays import Counting, binidx_of
from tests.helpers import load_json


def test_a_sample_is_the_window_of_the_reference_and_its_successor():
    case = load_json("sampling")["cases"][0]
    source = Counting(1498226207)
    data = TokenDataset(source, case["ctx_len"], Permutation(case["magic_prime"]))
    for i, offset in zip(case["idx"], case["offsets"]):
        x, y = data[1 + i][:2]
        assert x.dtype == y.dtype == torch.int64
        assert torch.equal(x, torch.arange(offset, offset + case["ctx_len"]))
        assert torch.equal(y, x + 1)


def test_a_pass_reads_every_slot_once_and_its_last_target_is_inside_the_file():
    data = TokenDataset(Counting(29 * 8 + 3 + 1), 8, Permutation(29, shift=3))
    assert len(data) == 29
    starts = sorted(int(data[n][0][0]) for n in range(1, 30))
    assert starts == [8 * slot + 3 for slot in range(29)]
    assert max(int(data[n][1][-1]) for n in range(1, 30)) == 29 * 8 + 3


@pytest.mark.parametrize(("shift", "message"), [(4, "can be 0 to 3, not 4"), (-1, "0 to 3")])
def test_a_shift_out_of_the_data_is_refused_with_the_largest(shift, message):
    with pytest.raises(DataError, match=message):
        TokenDataset(Counting(29 * 8 + 4), 8, Permutation(29, shift))


def test_a_prime_beyond_the_data_is_refused():
    with pytest.raises(DataError, match="reads token 232, but the data ends with token 231"):
        TokenDataset(Counting(29 * 8), 8, Permutation(29))


def test_random_sampling_reaches_every_start_equally():
    # 5 starts: 0 ... 4, the last of which reads the last token as its last target.
    data = TokenDataset(Counting(13), 8, RandomStarts(seed=1))
    starts = [int(data[n][0][0]) for n in range(1, 5001)]
    counts = np.bincount(starts, minlength=5)
    assert len(counts) == 5
    # Standard deviation 28: five of them.
    assert (abs(counts - 1000) < 140).all(), counts


def test_random_sampling_depends_on_seed_and_number_alone():
    first, again, other = (
        TokenDataset(Counting(10**9), 16, RandomStarts(seed)) for seed in (5, 5, 6)
    )
    numbers = [1, 2, 3, 10**12, 2, 1]
    assert [first.offset(n) for n in numbers] == [again.offset(n) for n in numbers]
    assert first.offset(2) == first.offset(2) != first.offset(3)
    assert [first.offset(n) for n in numbers] != [other.offset(n) for n in numbers]


def test_random_sampling_serves_data_of_exactly_one_sample():
    data = TokenDataset(Counting(9), 8, RandomStarts())
    assert {data.offset(n) for n in range(1, 20)} == {0}


@pytest.mark.parametrize("order", [Permutation(2), RandomStarts()])
def test_data_shorter_than_a_sample_is_refused(order):
    with pytest.raises(DataError, match=r"8 tokens, too few.*--ctx_len 7 or less"):
        TokenDataset(Counting(8), 8, order)


@pytest.mark.parametrize("bad", [5, 70, -3])
def test_an_id_beyond_the_vocabulary_is_named_with_its_place(bad):
    class Source(Counting):
        def get(self, offset, length):
            tokens = super().get(offset, length) % 5
            return np.where(np.arange(offset, offset + length) == 19, bad, tokens)

    data = TokenDataset(Source(60), 10, Permutation(5), vocab_size=5)
    offsets = {data.offset(n): n for n in range(1, 6)}
    n = offsets[10]
    with pytest.raises(DataError, match=f"id {bad} at position 9 of sample {n} \\(token 19 of"):
        data[n]
    # Token 19 is no target of the sample before, whose last target is token 10.
    data[offsets[0]]


def test_an_id_beyond_the_vocabulary_is_found_in_the_last_target():
    data = TokenDataset(Counting(60), 10, Permutation(5), vocab_size=10)
    n = next(n for n in range(1, 6) if data.offset(n) == 0)
    with pytest.raises(DataError, match="id 10 at position 10"):
        data[n]


@given(
    ctx_len=st.integers(1, 50), windows=st.integers(1, 60), rest=st.integers(0, 49), data=st.data()
)
def test_validation_samples_overlap_only_when_they_must(ctx_len, windows, rest, data):
    tokens = windows * ctx_len + rest % ctx_len + 1
    count = data.draw(st.integers(1, 80))
    offsets = evenly_spread_samples(tokens, ctx_len, count)
    assert len(offsets) == count
    assert offsets == sorted(offsets)
    assert offsets[0] >= 0 and offsets[-1] + ctx_len + 1 <= tokens
    distances = np.diff(offsets)
    if count <= windows:
        assert (distances >= ctx_len).all()
    if count > 1:
        assert offsets[-1] + ctx_len + 1 == tokens
        assert distances.max() - distances.min() <= 1


def test_validation_of_data_shorter_than_a_sample_is_refused():
    with pytest.raises(DataError, match="16 tokens, too few"):
        evenly_spread_samples(16, 16, 1)
    assert evenly_spread_samples(17, 16, 1) == [0]


def test_validation_samples_are_the_windows_at_the_spread_offsets():
    data = ValidationDataset(Counting(100), 9, evenly_spread_samples(100, 9, 4), 100)
    # 90 starts in three equal distances.
    assert [int(sample.tokens[0]) for sample in data] == [0, 30, 60, 90]
    assert torch.equal(data[3][1], torch.arange(91, 100))


def test_a_dataset_is_pickled_without_its_tokens(tmp_path):
    source = binidx_of(list(range(4000)), tmp_path)
    data = TokenDataset(source, 16, Permutation(magic_prime(4000, 16)))
    content = pickle.dumps(data)
    assert len(content) < 2000
    assert torch.equal(pickle.loads(content)[9][0], data[9][0])


@pytest.mark.parametrize(("start_method", "workers"), [("fork", 2), ("spawn", 1)])
def test_persistent_workers_deliver_the_samplers_order_pass_after_pass(
    start_method, workers, tmp_path
):
    source = binidx_of(list(range(4000)), tmp_path)
    data = TokenDataset(source, 16, Permutation(magic_prime(4000, 16)))
    sampler = SampleNumbers(0, 5, 4, 1, 1, 2)
    loader = DataLoader(
        data,
        batch_size=4,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context=start_method,
        collate_fn=collate,
    )
    for first_step in (0, 5):
        sampler.first_step = first_step
        expected = [2 + i * 2 for i in range(first_step * 4, first_step * 4 + 20)]
        batches = list(loader)
        assert [tuple(x.shape) for x, *_ in batches] == [(4, 16)] * 5
        read = torch.cat([batch.tokens for batch in batches])
        assert [number for batch in batches for number in batch.numbers] == expected
        assert torch.equal(read, torch.stack([data[n][0] for n in expected]))
