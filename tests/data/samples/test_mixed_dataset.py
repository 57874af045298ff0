"""Mixed data sets: each sample is its part's, and masks count over the mixture's own steps."""

from __future__ import annotations

import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch

from rwkv_train.data.samples.dataset import TokenDataset
from rwkv_train.data.samples.mixed_dataset import MixedDataset
from rwkv_train.data.samples.sample_source import StepReading
from rwkv_train.data.sampling.mixture import Mixture
from rwkv_train.data.sampling.sample_order import Permutation
from rwkv_train.errors import DataError
from tests.data.samples.token_arrays import Counting

CTX_LEN = 4
SHARES = [Fraction(3, 4), Fraction(1, 4)]


class OddTokens:
    """A loss mask: weight 2 for odd token numbers, 0 for even ones."""

    def get(self, offset, length):
        return (np.arange(offset, offset + length) % 2 * 2).astype(np.uint8)


def mixed(masks=(None, None), samples=4, windows=1, **options):
    reading = StepReading(samples, windows)
    parts = [
        TokenDataset(
            Counting(tokens),
            CTX_LEN,
            Permutation(prime),
            loss_mask=mask,
            reading=reading,
            **options,
        )
        for tokens, prime, mask in zip((13 * CTX_LEN, 6 * CTX_LEN), (11, 5), masks)
    ]
    return MixedDataset(parts, ["big", "small"], Mixture(SHARES, SHARES), reading)


def test_a_sample_is_that_of_its_part_under_its_global_number():
    data = mixed()
    for n in range(1, 20):
        part, number = data.mixture.pick(n)
        sample, own = data[n], data.parts[part][number]
        assert sample.tokens.tolist() == own.tokens.tolist()
        assert sample.tokens[0] == data.offset(n) == data.parts[part].offset(number)
        assert (sample.number, sample.mask) == (n, None)


def test_its_size_is_that_of_all_parts():
    data = mixed()
    assert (data.tokens, len(data)) == (13 * CTX_LEN + 6 * CTX_LEN, 11 + 5)
    assert data.characters is None and not data.has_loss_mask


def test_parts_without_a_mask_count_fully_and_masks_scale_over_the_mixtures_steps():
    data = mixed(masks=(OddTokens(), None))
    # A step of four samples: three of two odd targets of weight 2, one of four targets of weight 1.
    weights = [int(data.weights(n).sum()) for n in range(1, 13)]
    assert [sum(weights[at : at + 4]) for at in (0, 4, 8)] == [3 * 4 + 4] * 3
    means = [data[n].mask.mean().item() for n in range(1, 5)]
    # The weights of a step have the mean 1 over its positions.
    assert sum(means) / 4 == pytest.approx(1)
    part_of = [data.mixture.pick(n)[0] for n in range(1, 5)]
    fully = data[1 + part_of.index(1)].mask.tolist()
    assert fully == pytest.approx([4 * CTX_LEN / 16] * CTX_LEN)


def test_windows_are_steps_of_their_own():
    data = mixed(masks=(OddTokens(), None), windows=2)
    # Of each sample one window of two targets: three times one odd target, once both.
    for step in range(4):
        first, window = 1 + 4 * (step // 2), 2 * (step % 2)
        part = slice(window, window + 2)
        weights = [data.weights(n)[part] for n in range(first, first + 4)]
        assert sum(int(w.sum()) for w in weights) == 3 * 2 + 2
        masks = torch.stack([data[n].mask[part] for n in range(first, first + 4)])
        assert masks.mean().item() == pytest.approx(1)


def test_a_fault_names_the_part():
    data = mixed(vocab_size=30)
    faults = []
    for n in range(1, 17):
        try:
            data[n]
        except DataError as error:
            faults.append(str(error))
    assert faults and all(fault.startswith("big: token id") for fault in faults)


def test_it_passes_to_worker_processes():
    data = mixed(masks=(OddTokens(), None))
    copy = pickle.loads(pickle.dumps(data))
    assert copy[3].mask.tolist() == data[3].mask.tolist()
