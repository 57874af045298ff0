"""Filters and division by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rwkv_train.data.convert.pipeline import ConvertOptions, convert
from rwkv_train.data.convert.select import Arrangement, FilteredOut, divide, keep
from rwkv_train.errors import DataError
from tests.data.corpora import documents_of, write_jsonl

# The final 0 is counted in the sizes, not in the limits.
SIZES = np.array([1, 3, 2, 3, 9, 3], np.int32)
DIGESTS = np.array([bytes(15) + bytes([b]) for b in (0, 7, 5, 7, 1, 7)], "V16")


def test_lengths_outside_the_limits_are_left_out_and_counted():
    numbers, filtered_out = keep(SIZES, None, Arrangement(min_tokens=1, max_tokens=2))
    assert numbers.tolist() == [1, 2, 3, 5]
    assert filtered_out == FilteredOut(0, too_short=1, too_long=1)


def test_only_the_first_of_equal_documents_is_kept():
    numbers, filtered_out = keep(SIZES, DIGESTS, Arrangement(dedup=True))
    assert (numbers.tolist(), filtered_out) == ([0, 1, 2, 4], FilteredOut(duplicates=2))
    numbers, filtered_out = keep(SIZES, DIGESTS, Arrangement(dedup=True, min_tokens=2))
    assert (numbers.tolist(), filtered_out) == ([1, 4], FilteredOut(duplicates=2, too_short=2))


def test_every_kept_document_is_held_out_or_in_every_repetition():
    kept = np.array([3, 4, 8, 9, 20])
    orders, held_out = divide(kept, Arrangement(repeats=3, validation=0.4))
    assert len(held_out) == 2
    for order in orders:
        assert sorted([*order, *held_out]) == kept.tolist()


@pytest.mark.parametrize(
    "wanted", [Arrangement(min_tokens=-1), Arrangement(min_tokens=5, max_tokens=4)]
)
def test_limits_that_nothing_can_meet_are_refused(wanted):
    with pytest.raises(DataError, match="--min_tokens"):
        wanted.check()


def test_a_conversion_without_documents_left_is_refused(tmp_path):
    given = [write_jsonl(tmp_path, ["a", "b" * 9])], str(tmp_path / "out")
    with pytest.raises(DataError, match=r"no document is left: 1 are shorter .* 1 longer"):
        convert(ConvertOptions(*given, Arrangement(min_tokens=2, max_tokens=8), "bytes"))
    made = convert(ConvertOptions(*given, Arrangement(min_tokens=2), "bytes"))
    assert documents_of(tmp_path / "out") == ["b" * 9]
    assert made.filtered_out == FilteredOut(too_short=1)
