"""Rows of associative recall have the properties of the definition, with any seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_train.data.synthetic.associative import MqarRows
from rwkv_train.data.synthetic.random_numbers import RandomNumbers


def made(rows, count, seed=0):
    blocks = list(rows.blocks(count, RandomNumbers(seed)))
    return tuple(np.concatenate(parts) for parts in zip(*blocks))


@st.composite
def possible(draw):
    pairs = draw(st.integers(1, 9))
    row_tokens = 4 * pairs + 2 * draw(st.integers(0, 12))
    vocab_size = row_tokens + draw(st.integers(1, 40))
    exponent = draw(st.sampled_from([0.01, 0.5, 1.0, 3.0]))
    return MqarRows(
        vocab_size, row_tokens, pairs, exponent, draw(st.sampled_from(["zero", "random"]))
    )


@settings(deadline=None)
@given(rows=possible(), seed=st.integers(0, 2**63 - 1), count=st.integers(1, 6))
def test_every_key_is_asked_once_and_its_value_follows(rows, seed, count):
    rows.check()
    all_tokens, all_weights = made(rows, count, seed)
    assert all_tokens.shape == all_weights.shape == (count, rows.row_tokens)
    begin = 2 * rows.pairs
    for tokens, weights in zip(all_tokens.tolist(), all_weights.tolist()):
        keys, values = tokens[0:begin:2], tokens[1:begin:2]
        value_of = dict(zip(keys, values))
        assert len(value_of) == len(set(values)) == rows.pairs
        assert all(1 <= key < rows.vocab_size // 2 for key in keys)
        assert all(rows.vocab_size // 2 <= value < rows.vocab_size for value in values)
        answers = [place for place, weight in enumerate(weights) if weight]
        # Each key is asked, at even distances behind the pairs.
        assert sorted(tokens[place - 1] for place in answers) == sorted(keys)
        for place in answers:
            assert weights[place] == 1 and place > begin and (place - begin) % 2 == 1
            assert tokens[place] == value_of[tokens[place - 1]]
        others = {t for p, t in enumerate(tokens[begin:], begin) if p not in answers}
        if rows.filler == "zero":
            assert others <= {0, *keys}
        assert max(tokens) < rows.vocab_size and min(tokens) >= 0


@pytest.mark.parametrize(
    ("row_tokens", "pairs", "exponent", "mean", "first_used"),
    [
        (64, 4, 0.01, 7.13, 0.72),
        (128, 8, 0.01, 14.1, 0.89),
        (256, 16, 0.01, 28.1, 0.98),
        # Evenly: the middle of the slots 0 ... 27, of which each is used by 4 of 28 rows.
        (64, 4, 1.0, 13.5, 4 / 28),
    ],
)
def test_questions_come_as_early_as_in_the_published_task(
    row_tokens, pairs, exponent, mean, first_used
):
    rows = MqarRows(512, row_tokens, pairs, exponent)
    _, weights = made(rows, 4000)
    slots = (np.nonzero(weights)[1].reshape(4000, pairs) - 2 * pairs) // 2
    assert slots.mean() == pytest.approx(mean, rel=0.03)
    assert (slots.min(1) == 0).mean() == pytest.approx(first_used, abs=0.03)


def test_random_filler_is_of_the_whole_vocabulary():
    tokens, weights = made(MqarRows(20, 16, 1, filler="random"), 2000)
    # Behind the pair and without the question and its answer.
    filler = tokens[:, 2:][~(weights[:, 2:] | np.roll(weights, -1, 1)[:, 2:]).astype(bool)]
    counts = np.bincount(filler, minlength=20)
    assert len(counts) == 20 and counts.min() > 0.9 * counts.mean()


def test_rows_of_many_blocks_are_all_different():
    tokens, _ = made(MqarRows(), 9000)
    assert len(np.unique(tokens, axis=0)) == 9000
