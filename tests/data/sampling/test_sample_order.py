"""Orders of samples: by hand for a small permutation, inside the data for random starts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_train.data.sampling.held_out import HeldOut
from rwkv_train.data.sampling.sample_order import Permutation, RandomStarts
from rwkv_train.errors import DataError


def test_a_permutation_by_hand():
    # prime 5: the golden factor is trunc(3.09) = 3; slots 3 n^3 mod 5 of n = 1 ... 5.
    order = Permutation(5, shift=2)
    assert [order.offset(n, 60, 10) for n in range(1, 6)] == [32, 42, 12, 22, 2]
    assert order.samples_per_pass(60, 10) == 5


def test_held_out_slots_are_gone_around():
    # 7 training slots and 2 blocks of one slot: after floor(7 / 4) = 1 and floor(21 / 4) = 5.
    order = Permutation(5, held_out=HeldOut(blocks=2, width=1, rest=7, ctx_len=10))
    # Training slots 0 ... 4 stand at 0, 2, 3, 4, 5.
    assert sorted(order.offset(n, 110, 10) for n in range(1, 6)) == [0, 20, 30, 40, 50]


def test_held_out_slots_and_a_shift_exclude_each_other():
    with pytest.raises(AssertionError):
        Permutation(5, shift=1, held_out=HeldOut(2, 1, 7, 10)).check(110, 10)


@given(st.integers(2, 10**12), st.integers(1, 10**6), st.integers(1, 10**15))
def test_random_starts_leave_room_for_a_sample_and_its_last_target(tokens, ctx_len, n):
    if tokens > ctx_len:
        start = RandomStarts(seed=3).offset(n, tokens, ctx_len)
        assert start >= 0 and start + ctx_len < tokens


def test_random_starts_accept_what_a_permutation_refuses():
    RandomStarts().check(9, 8)
    with pytest.raises(DataError, match="reads token 16"):
        Permutation(2).check(9, 8)
