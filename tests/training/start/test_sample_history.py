"""What was read before, by arithmetic, against a list of every token."""

from __future__ import annotations

import numpy as np
import pytest

from rwkv_train.data.sampling.held_out import hold_out
from rwkv_train.data.sampling.magic_prime import magic_prime
from rwkv_train.data.sampling.sample_order import Permutation, RandomStarts
from rwkv_train.data.sampling.sampler import number_of_slot, slot
from rwkv_train.training.start.sample_history import PartReading, tokens_read

TOKENS, CTX_LEN = 2000, 20
HELD_OUT = hold_out(TOKENS, CTX_LEN, 9, 40)
PRIME = magic_prime(TOKENS, CTX_LEN)
ORDERS = {
    "a permutation": Permutation(PRIME),
    "a shifted one": Permutation(PRIME, 7),
    "with held-out slots": Permutation(magic_prime(TOKENS - HELD_OUT.tokens, CTX_LEN), 0, HELD_OUT),
    "random starts": RandomStarts(3),
}


@pytest.mark.parametrize("prime", [2, 5, 11, 89, 2926181])
def test_a_slot_tells_its_sample(prime: int):
    for n in {1, 2, prime // 2 + 1, prime}:
        assert number_of_slot(slot(n, prime), prime) == n


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("count", [0, 1, 30, 500])
def test_tokens_that_were_read_are_counted_exactly(name: str, count: int):
    part = PartReading(ORDERS[name], TOKENS, CTX_LEN)
    seen = np.zeros(TOKENS, bool)
    for n in range(1, count + 1):
        begin = part.offset(n)
        seen[begin : begin + CTX_LEN] = True
    known = tokens_read(part, count)
    assert known is not None
    for a in range(0, TOKENS - 70, 13):
        assert known(a, a + 70) == int(seen[a : a + 70].sum()), a


def test_too_many_random_samples_are_not_listed():
    assert tokens_read(PartReading(RandomStarts(), TOKENS, CTX_LEN), 10**9) is None


def test_held_out_slots_belong_to_no_sample():
    trained = {HELD_OUT.training_slot(index): index for index in range(HELD_OUT.rest)}
    for place in range(TOKENS // CTX_LEN - 1):
        assert HELD_OUT.index_of(place) == trained.get(place)
