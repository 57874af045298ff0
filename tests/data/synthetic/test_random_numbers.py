"""Draws of made-up data: each has the distribution that it promises."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from rwkv_train.data.synthetic.random_numbers import DistinctTokens, RandomNumbers

DRAWS = 40_000


def shares(rows):
    """Distinct rows and how often each came."""
    found, counts = np.unique(rows, axis=0, return_counts=True)
    return dict(zip(map(tuple, found.tolist()), counts / len(rows)))


def assert_shares(rows, expected):
    """Every row came as often as it should, within five standard deviations."""
    found = shares(rows)
    assert found.keys() == expected.keys()
    for row, share in expected.items():
        assert abs(found[row] - share) < 5 * (share * (1 - share) / len(rows)) ** 0.5, row


def test_tokens_come_in_every_order_equally_often_also_from_a_pool_that_was_used():
    drawn = DistinctTokens(RandomNumbers(3), 5, 9, 2, rows=100)
    rows = np.concatenate([drawn.draw(100) for _ in range(DRAWS // 100)])
    assert_shares(rows, dict.fromkeys(permutations(range(5, 9), 2), 1 / 12))


def test_places_are_drawn_one_after_another_by_the_weights_of_those_that_are_left():
    weights = np.array([1, 1 / 2, 1 / 5, 1 / 10])
    expected = {
        (i, j): weights[i] / weights.sum() * weights[j] / (weights.sum() - weights[i])
        for i, j in permutations(range(4), 2)
    }
    assert_shares(RandomNumbers(4).weighted_order(np.log(weights), DRAWS, 2), expected)


def test_all_places_can_be_drawn():
    order = RandomNumbers(5).weighted_order(np.zeros(3), 100, 3)
    assert (np.sort(order, 1) == np.arange(3)).all()


@pytest.mark.parametrize("limit", [1, 3, 1 << 31])
def test_integers_stay_below_the_limit_and_reach_all_of_it(limit):
    drawn = RandomNumbers(6).below(limit, DRAWS) / limit
    assert drawn.min() >= 0 and drawn.max() < 1
    assert abs(drawn.mean() - (limit - 1) / (2 * limit)) < 0.01


def test_seeds_and_streams_are_different_numbers_and_always_the_same():
    drawn = [RandomNumbers(seed, stream).below(1 << 31, 7) for seed in (0, 1) for stream in (0, 1)]
    assert len({tuple(row) for row in drawn}) == 4
    assert (RandomNumbers(1, 1).below(1 << 31, 7) == drawn[3]).all()
    # Of an odd number of draws the half that is left over is not used.
    assert RandomNumbers(2).between_0_and_1(3).shape == (3,)
