"""Curves are thinned without losing their means, lows and highs."""

from __future__ import annotations

import numpy as np
import pytest

from rwkv_train.report.step_bins import StepBins, thinned


def rows(count: int) -> np.ndarray:
    """Two columns: 0, 1, 2, ... and a wild one."""
    places = np.arange(count, dtype=float)
    return np.column_stack([places, np.sin(places * places)])


@pytest.mark.parametrize("pieces", [[1] * 37, [37], [5, 1, 20, 11], [2, 35]])
def test_the_bins_do_not_depend_on_how_the_rows_came(pieces: list[int]):
    bins, values = StepBins(("place", "wild"), most=10), rows(37)
    for end, size in zip(np.cumsum(pieces), pieces):
        bins.add(values[end - size : end])
    # More than 10 bins of 1 and of 2, but not of 4; the last one holds row 36 alone.
    assert (bins.size, bins.rows) == (4, 37)
    parts = [values[i : i + 4, 1] for i in range(0, 37, 4)]
    np.testing.assert_allclose(bins.means("wild"), [part.mean() for part in parts], rtol=1e-12)
    np.testing.assert_array_equal(bins.lows("wild"), [part.min() for part in parts])
    np.testing.assert_array_equal(bins.highs("wild"), [part.max() for part in parts])
    np.testing.assert_array_equal(bins.highs("place"), [*range(3, 36, 4), 36])
    assert bins.total("place") == 36 * 37 / 2


def test_what_is_not_known_counts_for_nothing():
    bins = StepBins(("a", "b", "c"), most=2)
    none = float("nan")
    bins.add(np.array([[1, none, none], [3, 5, none], [7, float("inf"), none]]))
    assert bins.size == 2
    np.testing.assert_array_equal(bins.means("a"), [2, 7])
    np.testing.assert_array_equal(bins.means("b"), [5, none])
    assert bins.knows("b") and not bins.knows("c")


def test_thinned_places_have_both_ends():
    assert list(thinned(5, 10)) == [0, 1, 2, 3, 4]
    assert list(thinned(101, 3)) == [0, 50, 100]
    assert list(thinned(0, 3)) == [] and list(thinned(9, 1)) == [0]
