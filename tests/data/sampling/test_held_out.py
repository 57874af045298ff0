"""Held-out slots: spread, never trained on, and the arithmetic around them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_train.data.samples.dataset import TokenDataset, ValidationDataset
from rwkv_train.data.sampling.held_out import HeldOut, hold_out
from rwkv_train.data.sampling.magic_prime import magic_prime
from rwkv_train.data.sampling.sample_order import Permutation
from rwkv_train.errors import DataError
from tests.data.samples.token_arrays import Counting


def test_the_arithmetic_is_that_worked_out_by_hand():
    # 10 slots of 8 tokens, of which the last may lack its target; 9 usable, 2 held out.
    # Blocks stand after floor(1 * 7 / 4) = 1 and floor(3 * 7 / 4) = 5 training slots.
    held_out = hold_out(80, 8, share=2, val_ctx_len=8)
    assert held_out == HeldOut(blocks=2, width=1, rest=7, ctx_len=8)
    assert [held_out.offset(j) // 8 for j in (0, 1)] == [1, 6]
    assert [held_out.training_slot(i) for i in range(7)] == [0, 2, 3, 4, 5, 7, 8]
    assert held_out.tokens == 16
    # 64 tokens are 8 slots: the largest prime 2 mod 3 that is at most 7 is 5
    assert magic_prime(80 - held_out.tokens, 8) == 5


def test_held_out_and_training_slots_are_all_slots_once():
    cases = itertools.product(range(3, 40), range(1, 12), (1, 2, 3))
    for slots, blocks, width in (c for c in cases if c[1] * c[2] + 2 <= c[0]):
        held_out = HeldOut(blocks, width, slots - blocks * width, 1)
        training = [held_out.training_slot(i) for i in range(held_out.rest)]
        blocked = [held_out.offset(j) + k for j in range(blocks) for k in range(width)]
        assert training == sorted(training) and blocked == sorted(blocked)
        assert sorted(training + blocked) == list(range(slots)), (slots, blocks, width)


@given(st.integers(3, 10**12), st.integers(1, 10**6), st.integers(1, 8), st.data())
def test_the_numbers_fit_together_also_when_they_are_large(slots, blocks, width, data):
    if blocks * width + 2 > slots:
        return
    held_out = HeldOut(blocks, width, slots - blocks * width, 4)
    block = data.draw(st.integers(0, blocks - 1))
    before = held_out.offset(block) // 4 - block * width
    # the training slots around a block
    if before:
        assert held_out.training_slot(before - 1) < held_out.offset(block) // 4
    if before < held_out.rest:
        assert held_out.training_slot(before) >= held_out.offset(block) // 4 + width


@pytest.mark.parametrize("tokens", [161, 167, 168])
@pytest.mark.parametrize(
    ("share", "val_ctx_len"), [(1, 8), (0.2, 8), (0.01, 3), (4, 16), (5, 20), (1, 24)]
)
def test_no_training_sample_reads_a_held_out_token_but_as_its_last_target(
    tokens, share, val_ctx_len
):
    source = Counting(tokens)
    held_out = hold_out(tokens, 8, share, val_ctx_len)
    prime = magic_prime(tokens - held_out.tokens, 8)
    training = TokenDataset(source, 8, Permutation(prime, held_out=held_out))
    validation = ValidationDataset(source, val_ctx_len, held_out.spread_offsets(100))
    assert len(validation) == held_out.blocks
    inputs = {int(t) for n in range(1, prime + 1) for t in training[n].tokens}
    assert len(inputs) == prime * 8
    for sample in validation:
        assert not inputs & set(sample.tokens.tolist())
        assert sample.targets.tolist() == [t + 1 for t in sample.tokens.tolist()]
    held = {t for s in validation for t in s.tokens.tolist()}
    shared = {n for n in range(1, prime + 1) if held & set(training[n].targets.tolist())}
    for n in shared:
        assert set(training[n].targets.tolist()[:-1]) & held == set()
    firsts = {int(s.tokens[0]) for s in validation}
    assert held & {t for n in shared for t in training[n].targets.tolist()} <= firsts


def test_fewer_samples_than_blocks_are_spread_over_them():
    held_out = hold_out(1000, 8, 21, 8)
    assert held_out.spread_offsets(5) == [held_out.offset(j) for j in (0, 5, 10, 15, 20)]


def test_a_share_is_of_the_usable_slots_and_one_at_least():
    assert hold_out(801, 8, 0.1, 8).blocks == 10
    assert hold_out(801, 8, 0.001, 8).blocks == 1
    # 10 slots are 3 blocks of three
    assert hold_out(801, 8, 0.1, 24)[:2] == (3, 3)


def test_holding_out_nearly_everything_is_refused():
    with pytest.raises(DataError, match=r"--val_split 98 holds out 98 of the 99 samples"):
        hold_out(800, 8, 98, 8)
    with pytest.raises(DataError, match=r"12 for each of --val_ctx_len 96"):
        hold_out(100, 8, 1, 96)
