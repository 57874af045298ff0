"""Batches: fields are stacked, and a sample with a fault lacks what the others have."""

from __future__ import annotations

import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch

from rwkv_train.data.samples.batch import Batch, Sample, collate, send_batches_by_value


def sample(first, **fields):
    tokens = torch.arange(first, first + 3)
    return Sample(tokens, tokens + 1, **fields)


def test_samples_are_stacked_in_order():
    batch = collate([sample(0, number=7), sample(10, number=8)])
    assert batch.tokens.tolist() == [[0, 1, 2], [10, 11, 12]]
    assert batch.targets.tolist() == [[1, 2, 3], [11, 12, 13]]
    assert (batch.mask, batch.reset) == (None, None)
    assert (batch.numbers, batch.faults, batch.position) == ((7, 8), ("", ""), 0)


def test_a_sample_with_a_fault_gets_zeros_for_the_masks_of_the_others():
    mask, reset = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, False, True])
    batch = collate([sample(0, fault="torn"), sample(3, mask=mask, reset=reset)])
    assert batch.mask.tolist() == [[0, 0, 0], [1, 2, 3]]
    assert batch.reset.tolist() == [[False] * 3, [True, False, True]]
    assert batch.faults == ("torn", "")


def test_windows_of_different_positions_are_not_mixed():
    with pytest.raises(AssertionError, match="different positions"):
        collate([sample(0), sample(0, position=3)])


def test_workers_send_the_contents_of_a_batch_and_no_shared_memory():
    send_batches_by_value()
    mask = torch.tensor([1.0, 0.0, 3.0])
    sent = collate([sample(0, mask=mask, number=3, fault="torn"), sample(4, mask=mask)])
    written = bytes(ForkingPickler.dumps(sent))
    assert b"rebuild_storage" not in written
    received = pickle.loads(written)
    assert isinstance(received, Batch)
    for here, there in zip(received, sent, strict=True):
        if isinstance(there, torch.Tensor):
            assert here.dtype == there.dtype and torch.equal(here, there)
            # As a tensor of torch's own: a step may write into it.
            here.zero_()
        else:
            assert here == there
