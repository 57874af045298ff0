"""Sampling of 10^12 tokens and more: exact where 32 bits and binary64 are not."""

from __future__ import annotations

from fractions import Fraction
from math import isqrt

import pytest

from rwkv_train.data.sampling.held_out import hold_out
from rwkv_train.data.sampling.magic_prime import check_magic_prime, is_prime, magic_prime
from rwkv_train.data.sampling.sample_order import Permutation, RandomStarts
from rwkv_train.data.sampling.sampler import number_of_slot, slot

TOKENS = 10**12 + 12_345


def divides_nothing(n: int) -> bool:
    """Trial division, which takes a moment here and minutes for what follows."""
    return n > 1 and n % 2 > 0 and all(n % k for k in range(3, isqrt(n) + 1, 2))


@pytest.mark.parametrize("ctx_len", [1, 7, 512, 4096, 1_048_576])
def test_the_magic_prime_of_a_trillion_tokens_is_the_largest(ctx_len: int) -> None:
    slots = TOKENS // ctx_len
    prime = magic_prime(TOKENS, ctx_len)
    assert prime % 3 == 2 and prime < slots and divides_nothing(prime)
    between = [n for n in range(prime + 1, slots) if n % 3 == 2]
    assert len(between) < 400 and not any(map(divides_nothing, between))
    check_magic_prime(prime, TOKENS, ctx_len)


def test_primes_beyond_64_bits_are_told_from_products() -> None:
    # Mersenne primes, and the product of two primes near 10^12.
    assert is_prime(2**61 - 1) and is_prime(2**89 - 1) is True
    assert not is_prime(magic_prime(TOKENS, 1) * magic_prime(TOKENS - 1000, 1))
    # The least strong pseudoprimes to the bases up to 23, and up to 37 (Sorenson and Webster 2015).
    assert not is_prime(3_825_123_056_546_413_051)
    assert not is_prime(318_665_857_834_031_151_167_461)


@pytest.mark.parametrize("ctx_len", [1, 4096])
def test_slots_of_a_trillion_are_found_back_from_their_places(ctx_len: int) -> None:
    prime = magic_prime(TOKENS, ctx_len)
    order = Permutation(prime)
    for n in (1, 2, 10**6 + 3, prime // 2, prime - 1, prime, 5 * prime + 11):
        place = slot(n, prime)
        assert number_of_slot(place, prime) == (n - 1) % prime + 1
        offset = order.offset(n, TOKENS, ctx_len)
        assert offset == place * ctx_len and 0 <= offset < TOKENS - ctx_len
    # In exact arithmetic: the golden ratio to 12 digits times p, and the cube's remainder.
    assert slot(3, prime) == int(prime * ((5**0.5 - 1) / 2)) * 27 % prime


@pytest.mark.parametrize("share", [0.001, 0.37, 1, 100_003])
def test_held_out_blocks_of_a_trillion_tokens_never_meet_training_slots(share: float) -> None:
    ctx_len = 512
    held_out = hold_out(TOKENS, ctx_len, share, 3 * ctx_len)
    slots = TOKENS // ctx_len - 1
    assert held_out.blocks * 3 + held_out.rest == slots
    if share < 1:
        assert abs(held_out.blocks * 3 - Fraction(share) * slots) < 4
    for block in {0, held_out.blocks // 3, held_out.blocks - 1}:
        first = held_out.offset(block) // ctx_len
        # It stands between two neighbouring training slots.
        assert [held_out.index_of(first + i) for i in range(3)] == [None] * 3
        before, behind = held_out.index_of(first - 1), held_out.index_of(first + 3)
        if before is not None and behind is not None:
            assert behind == before + 1
    for index in (0, 1, 10**9 - 7, held_out.rest // 2, held_out.rest - 1):
        if index < held_out.rest:
            place = held_out.training_slot(index)
            assert held_out.index_of(place) == index and place < slots


def test_random_starts_reach_every_part_of_a_trillion_tokens() -> None:
    order = RandomStarts(3)
    offsets = [order.offset(n, TOKENS, 4096) for n in range(10**12, 10**12 + 4000)]
    assert all(0 <= offset < TOKENS - 4096 for offset in offsets)
    tenths = [offset * 10 // TOKENS for offset in offsets]
    assert all(300 < tenths.count(tenth) < 500 for tenth in range(10))
    # Not multiples of what 32 bits or a float would leave.
    assert len({offset % 4096 for offset in offsets}) > 2000
