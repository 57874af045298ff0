"""Rows read in windows: which step reads which part of which sample."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.data.samples.batch import Sample, collate
from rwkv_train.data.samples.bptt_windows import WindowDataset, WindowNumbers
from rwkv_train.data.sampling.sampler import SampleNumbers


class Rows:
    """Sample n is the tokens 100 n, 100 n + 1, ..."""

    def __init__(self, length, *, extras=False):
        self.length = length
        self.extras = extras

    def __getitem__(self, number):
        tokens = 100 * number + torch.arange(self.length)
        if not self.extras:
            return Sample(tokens, tokens + 1, number=number)
        return Sample(
            tokens, tokens + 1, mask=tokens / 2, reset=tokens % 3 == 0, number=number, fault="torn"
        )


def keys(windows, first_step, steps, *, micro_bsz=2, accumulate=1, rank=0, world_size=1):
    rows = SampleNumbers(0, 0, micro_bsz, accumulate, rank, world_size)
    return list(WindowNumbers(rows, windows, first_step, steps))


def test_every_window_of_a_group_of_samples_comes_before_the_next_group():
    assert keys(3, 0, 4) == [(1, 0), (2, 0), (1, 1), (2, 1), (1, 2), (2, 2), (3, 0), (4, 0)]


def test_a_run_goes_on_within_the_rows():
    everything = keys(3, 0, 9)
    for step in range(9):
        assert keys(3, step, 9 - step) == everything[2 * step :]


@pytest.mark.parametrize(
    ("micro_bsz", "accumulate", "world_size"),
    [(4, 1, 1), (2, 2, 1), (1, 2, 2), (1, 1, 4), (2, 1, 2)],
)
def test_the_windows_of_a_step_do_not_depend_on_processes_and_micro_batches(
    micro_bsz, accumulate, world_size
):
    for step in range(7):
        read = [
            key
            for rank in range(world_size)
            for key in keys(
                2,
                step,
                1,
                micro_bsz=micro_bsz,
                accumulate=accumulate,
                rank=rank,
                world_size=world_size,
            )
        ]
        group, window = divmod(step, 2)
        assert sorted(read) == [(n, window) for n in range(4 * group + 1, 4 * group + 5)]


def test_one_window_is_the_order_of_whole_samples():
    numbers = SampleNumbers(3, 5, 2, 2, 1, 2)
    assert keys(1, 3, 5, accumulate=2, rank=1, world_size=2) == [(n, 0) for n in numbers]
    sampler = WindowNumbers(numbers, 1, 3, 5)
    assert len(sampler) == len(list(sampler)) == 20


def test_an_endless_run_needs_no_list():
    rows = SampleNumbers(0, 0, 2, 1, 0, 1)
    assert len(WindowNumbers(rows, 4, 0, 10**12)) == 2 * 10**12


def test_the_windows_of_a_sample_make_up_the_sample():
    dataset = WindowDataset(Rows(12, extras=True), 4)
    parts = [dataset[7, window] for window in range(3)]
    assert [part.position for part in parts] == [0, 4, 8]
    row = Rows(12, extras=True)[7]
    for name in ("tokens", "targets", "mask", "reset"):
        assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(row, name))
    assert {(part.number, part.fault) for part in parts} == {(7, "torn")}


def test_a_sample_without_mask_and_resets_has_none_in_its_windows():
    part = WindowDataset(Rows(12), 6)[3, 1]
    assert (part.mask, part.reset) == (None, None)
    assert part.tokens.tolist() == list(range(306, 312))


def test_a_batch_knows_its_position_and_refuses_to_mix_two():
    dataset = WindowDataset(Rows(12), 6)
    assert collate([dataset[1, 1], dataset[2, 1]]).position == 6
    with pytest.raises(AssertionError, match="different positions"):
        collate([dataset[1, 0], dataset[2, 1]])
