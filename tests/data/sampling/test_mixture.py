"""Mixtures: exact shares at every prefix, shares that move, and numbers within the parts."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_train.data.sampling.mixture import Mixture


def shares(*weights):
    return [Fraction(weight, sum(weights)) for weight in weights]


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_shares_are_exact_within_one_sample_at_every_prefix(parts):
    for weights in itertools.product(range(1, 8 if parts < 4 else 5), repeat=parts):
        part_shares = shares(*weights)
        mixture = Mixture(part_shares, part_shares)
        counts = [0] * parts
        for n in range(1, 2 * sum(weights) + 2):
            part, number = mixture.pick(n)
            counts[part] += 1
            assert number == counts[part]
            assert all(abs(c - n * s) < 1 for c, s in zip(counts, part_shares)), (weights, n)
            assert mixture.counts(n) == tuple(counts)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=12).filter(any))
def test_shares_are_exact_whatever_the_weights(weights):
    part_shares = shares(*weights)
    mixture = Mixture(part_shares, part_shares)
    for n in range(0, 1000):
        counts = mixture.counts(n)
        assert sum(counts) == n
        assert all(abs(c - n * s) < 1 for c, s in zip(counts, part_shares))


@pytest.mark.parametrize("samples", [1, 7, 100, 5000, 40000])
def test_moving_shares_follow_the_line_and_stay_at_its_end(samples):
    begin, end = shares(6, 3, 1), shares(0, 5, 5)
    mixture = Mixture(begin, end, samples)
    counts = [0, 0, 0]
    for n in range(1, samples + 41):
        part, number = mixture.pick(n)
        counts[part] += 1
        assert number == counts[part]
        if n > samples:
            continue
        for count, a, b in zip(counts, begin, end):
            line = a * n + (b - a) * n * n / (2 * samples)
            # a step is constant where the line moves, and its counts are whole
            assert abs(count - line) < 3 + samples / 1024, (n, count, float(line))
    late = [mixture.pick(n)[0] for n in range(2 * samples + 1, 2 * samples + 101)]
    assert (late.count(0), late.count(1)) == (0, 50)


def test_a_run_of_a_trillion_samples_has_exact_numbers_without_a_replay():
    begin, end = shares(7, 2, 1), shares(1, 2, 7)
    total = 10**12
    mixture = Mixture(begin, end, total)
    for n in (1, 10**6, 123456789012, 10**12 - 1, 10**12, 3 * 10**12):
        part, number = mixture.pick(n)
        before, after = mixture.counts(n - 1), mixture.counts(n)
        assert after[part] == before[part] + 1 == number
        assert sum(after) == n
    # the integral of the line: (0.7 + 0.1) / 2
    assert mixture.counts(total)[0] / total == pytest.approx(0.4, abs=1e-5)
