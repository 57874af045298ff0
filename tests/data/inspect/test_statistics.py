"""Unigram entropy: by hand, and the same over any number of blocks."""

from __future__ import annotations

import math

import pytest

from rwkv_train.data.binidx.writer import BinidxWriter
from rwkv_train.data.inspect import statistics
from rwkv_train.data.inspect.statistics import unigram_entropy
from rwkv_train.errors import DataError


def pair(folder, tokens, dtype="uint16"):
    with BinidxWriter(folder / "data", dtype) as writer:
        writer.append(tokens)
    return folder / "data"


def test_the_entropy_of_known_frequencies_is_that_by_hand(tmp_path):
    # One half, one quarter, two eighths: 1.75 bits.
    prefix = pair(tmp_path, [9, 9, 9, 9, 0, 0, 700, 3])
    assert unigram_entropy(prefix) == pytest.approx(1.75 * math.log(2), rel=1e-12)


def test_a_single_repeated_token_has_no_entropy(tmp_path):
    assert unigram_entropy(pair(tmp_path, [5] * 10)) == 0


def test_blocks_with_larger_and_smaller_ids_are_added_up(tmp_path, monkeypatch):
    prefix = pair(tmp_path, [1, 2, 60000, 7, 1, 2, 60000, 7, 1, 2, 60000, 7])
    for block in (1, 5, 12, 100):
        monkeypatch.setattr(statistics, "_BLOCK_TOKENS", block)
        assert unigram_entropy(prefix) == pytest.approx(math.log(4), rel=1e-12)


def test_a_negative_id_is_refused(tmp_path):
    with pytest.raises(DataError, match="negative token id -3"):
        unigram_entropy(pair(tmp_path, [1, -3], "int32"))
