"""The paired interval: exact differences, and as narrow as pairing makes it."""

from __future__ import annotations

import numpy as np
import pytest

from rwkv_train.evaluation.comparison import paired_difference


def test_the_difference_is_that_of_the_ratios_of_sums():
    found = paired_difference([10.0, 20.0], [8.0, 21.0], [4.0, 6.0])
    assert found.difference == pytest.approx(29 / 10 - 30 / 10)
    assert found.low <= found.difference <= found.high
    assert found.units == 2


def test_what_is_hard_for_both_models_does_not_widen_the_interval():
    draw = np.random.default_rng(1)
    hard = draw.normal(100, 50, 200)
    better = hard - 1 + draw.normal(0, 0.5, 200)
    found = paired_difference(hard, better)
    # The mean of 200 gains of deviation 0.5 has a standard error of 0.035, that of the documents
    # themselves of 3.5.
    assert found.is_certain and found.low < -1 < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / 200**0.5, rel=0.25)


def test_the_interval_holds_the_truth_about_95_times_of_100():
    draw = np.random.default_rng(2)
    held = 0
    for _ in range(100):
        found = paired_difference(np.zeros(60), draw.normal(0.2, 1, 60))
        held += found.low <= 0.2 <= found.high
    assert 88 <= held <= 99


def test_equal_models_do_not_differ_and_one_document_has_no_interval():
    same = paired_difference([1.0, 2.0], [1.0, 2.0])
    assert (same.difference, same.low, same.high, same.is_certain) == (0, 0, 0, False)
    assert paired_difference([1.0], [2.0]).low is None


def test_an_interval_is_the_same_every_time():
    first, second = [1.0, 5.0, 2.0, 8.0], [2.0, 4.0, 4.0, 9.0]
    assert paired_difference(first, second) == paired_difference(first, second)
