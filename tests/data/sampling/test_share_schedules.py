"""Constant shares of many parts: exact counts, whatever the weights, without a list of samples."""

from __future__ import annotations

import pickle
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_train.data.sampling.mixture import Mixture
from rwkv_train.data.sampling.share_schedules import ShareTable, ShareTree, schedule_of


def test_a_tree_of_two_picks_where_the_rounded_count_grows() -> None:
    # round(n 2 / 5), halves up, for n = 1 ... 10: 0 1 1 2 2 2 3 3 4 4
    tree = ShareTree([2, 3])
    counts = [0, 1, 1, 2, 2, 2, 3, 3, 4, 4]
    # The heavier part is the left side: part 1, with round(n 3 / 5): 1 1 2 2 3 4 4 5 5 6.
    heavier = [1, 1, 2, 2, 3, 4, 4, 5, 5, 6]
    assert [tree.counts(n) for n in range(1, 11)] == [[n - h, h] for n, h in enumerate(heavier, 1)]
    assert [n - h for n, h in enumerate(heavier, 1)] == counts
    assert [tree.pick(n) for n in (1, 2, 3, 6, 10)] == [(1, 1), (0, 1), (1, 2), (1, 4), (1, 6)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=40).filter(any), st.integers(1, 10**12))
def test_counts_are_exact_and_numbers_follow_them(weights: list[int], n: int) -> None:
    tree, total = ShareTree(weights), sum(weights)
    before = tree.counts(n - 1)
    for number in range(n, n + 40):
        part, of_part = tree.pick(number)
        before[part] += 1
        assert tree.counts(number) == before and of_part == before[part]
        assert all(abs(c - Fraction(number * w, total)) < 2.5 for c, w in zip(before, weights))
    assert all(count == 0 for count, weight in zip(before, weights) if weight == 0)


def test_weights_that_double_make_a_deep_tree_without_recursion() -> None:
    tree = ShareTree([2**i for i in range(3000)])
    assert tree.pick(1) == (2999, 1)
    counts = tree.counts(2**20)
    assert sum(counts) == 2**20 and counts[-1] == 2**19 and counts[0] == 0


def test_a_thousand_parts_are_near_their_shares_at_every_point() -> None:
    weights = [1 + i * i * 7919 % 1_000_003 for i in range(1000)]
    schedule, total = schedule_of(weights), sum(weights)
    assert isinstance(schedule, ShareTree)
    for n in (1, 999, 12_345_678, 10**12 + 7):
        counts = schedule.counts(n)
        assert sum(counts) == n
        assert all(abs(c - Fraction(n * w, total)) < 2.5 for c, w in zip(counts, weights))
        part, number = schedule.pick(n)
        assert number == counts[part]


def test_a_period_is_listed_as_long_as_it_is_short() -> None:
    assert isinstance(schedule_of([99_999, 1]), ShareTable)
    assert isinstance(schedule_of([100_000, 1]), ShareTree)


@pytest.mark.parametrize("samples", [0, 5_000_000])
def test_a_mixture_of_a_thousand_parts_is_the_same_in_a_worker(samples: int) -> None:
    begin = [Fraction(1 + i % 7, 3997) for i in range(1000)]
    begin[0] += 1 - sum(begin)
    end = [*begin[1:], begin[0]]
    mixture = Mixture(begin, end, samples)
    copy = pickle.loads(pickle.dumps(mixture))
    for n in (1, 2_499_999, 2_500_000, 10**12):
        part, number = mixture.pick(n)
        assert copy.pick(n) == (part, number)
        assert mixture.counts(n)[part] == mixture.counts(n - 1)[part] + 1 == number


def rounded_one_by_one(due: list[Fraction], total: int) -> list[int]:
    """What `_rounded` says of itself, word for word."""
    numbers = [max(0, value.__floor__()) for value in due]
    while sum(numbers) != total:
        change = 1 if sum(numbers) < total else -1
        open_ = [i for i, number in enumerate(numbers) if number + change >= 0]
        numbers[max(open_, key=lambda i: change * (due[i] - numbers[i]))] += change
    return numbers


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-40, 400), min_size=1, max_size=9), st.integers(1, 30))
def test_rounding_gives_each_change_to_the_part_that_is_wronged_most(
    due: list[int], denominator: int
) -> None:
    from rwkv_train.data.sampling.mixture import _rounded

    for total in (0, 1, max(0, sum(due) // denominator)):
        expected = rounded_one_by_one([Fraction(value, denominator) for value in due], total)
        assert _rounded(due, denominator, total) == expected
