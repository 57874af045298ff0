"""The magic prime: the reference's values, tiny data, and which explicit values are accepted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_train.data.sampling.magic_prime import (
    check_magic_prime,
    is_prime,
    largest_ctx_len,
    magic_prime,
)
from rwkv_train.errors import DataError
from tests.helpers import load_json


def sieve(limit):
    flags = [False, False] + [True] * (limit - 2)
    for n in range(2, limit):
        if flags[n]:
            for multiple in range(n * n, limit, n):
                flags[multiple] = False
    return flags


PRIMES = sieve(20_000)


def test_primality_agrees_with_a_sieve():
    assert [is_prime(n) for n in range(20_000)] == PRIMES
    assert not is_prime(-7)


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (561, False),  # Carmichael number
        (3215031751, False),  # strong pseudoprime to the bases 2, 3, 5 and 7
        (3825123056546413051, False),  # strong pseudoprime to all bases up to 23
        (2**61 - 1, True),  # Mersenne prime
        (2**61 + 1, False),
        (1670239709, True),  # data.md section 3
        ((2**31 - 1) ** 2, False),
    ],
)
def test_primality_is_exact_for_hard_and_large_numbers(n, expected):
    assert is_prime(n) is expected


@pytest.mark.parametrize("case", load_json("sampling")["magic_primes"], ids=str)
def test_the_prime_is_the_references(case):
    assert magic_prime(case["tokens"], case["ctx_len"]) == case["magic_prime"]
    check_magic_prime(case["magic_prime"], case["tokens"], case["ctx_len"])


@given(slots=st.integers(3, 19_999), ctx_len=st.integers(1, 5000), rest=st.integers(0, 4999))
def test_the_prime_is_the_largest_one_of_its_kind_below_the_slots(slots, ctx_len, rest):
    tokens = slots * ctx_len + rest % ctx_len
    right = max(p for p in range(2, slots) if PRIMES[p] and p % 3 == 2)
    assert magic_prime(tokens, ctx_len) == right


@given(slots=st.integers(3, 500), ctx_len=st.integers(1, 64))
def test_the_chosen_prime_is_never_refused(slots, ctx_len):
    check_magic_prime(magic_prime(slots * ctx_len, ctx_len), slots * ctx_len, ctx_len)


@pytest.mark.parametrize("tokens", [0, 1, 16, 47])
def test_data_of_fewer_than_three_slots_is_refused_with_the_minimum(tokens):
    with pytest.raises(DataError, match=f"{tokens} tokens, too few for --ctx_len 16.*at least 48"):
        magic_prime(tokens, 16)
    assert magic_prime(48, 16) == 2


def test_the_suggested_ctx_len_is_the_largest_that_works():
    for tokens in range(3, 200):
        ctx_len = largest_ctx_len(tokens)
        assert magic_prime(tokens, ctx_len) == 2
        with pytest.raises(DataError):
            magic_prime(tokens, ctx_len + 1)


# 1000 tokens of ctx_len 10 are 100 slots; the right prime is 89 (97 is 1 mod 3).
@pytest.mark.parametrize(
    ("prime", "reason"),
    [
        (91, "not a prime"),
        (87, "not a prime"),
        (97, "leaves 1, not 2"),
        (3, "leaves 0, not 2"),
        (101, "token 1010, beyond the last"),
        (83, "only 83 of 100 slots"),
        (0, "not a prime"),
        (-1, "not a prime"),
    ],
)
def test_a_wrong_prime_is_refused_with_the_right_one(prime, reason):
    with pytest.raises(DataError, match=f"{reason}.*the right value is 89"):
        check_magic_prime(prime, 1000, 10)


def test_a_smaller_prime_is_accepted_above_nine_tenths_of_the_slots():
    # 1000 slots: 953 is prime and 2 mod 3, not the largest (983).
    assert magic_prime(1000 * 8, 8) == 983
    check_magic_prime(953, 1000 * 8, 8)


def test_a_prime_equal_to_the_slots_needs_one_token_more():
    with pytest.raises(DataError, match="beyond the last"):
        check_magic_prime(17, 17 * 16, 16)
    check_magic_prime(17, 17 * 16 + 1, 16)


def test_a_ctx_len_below_one_is_refused():
    with pytest.raises(DataError, match="--ctx_len 0"):
        magic_prime(1000, 0)
