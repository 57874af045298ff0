"""Needles lie where they should, and the answer is what they say."""

from __future__ import annotations

import re

import numpy as np
import pytest

from rwkv_train.data.synthetic.needle import LINE, NeedleRows, PasskeyRows
from rwkv_train.data.synthetic.random_numbers import RandomNumbers
from rwkv_train.data.tokenize.tokenizer import load_tokenizer
from rwkv_train.errors import DataError


def made(rows, count, seed=0):
    blocks = list(rows.blocks(count, RandomNumbers(seed)))
    return tuple(np.concatenate(parts) for parts in zip(*blocks))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("vocab_size", "row_tokens"), [(8, 6), (9, 40), (128, 64)])
def test_the_key_stands_twice_and_its_value_behind_both(seed, vocab_size, row_tokens):
    tokens, weights = made(NeedleRows(vocab_size, row_tokens), 3000, seed)
    half = vocab_size // 2
    places = np.argmax(tokens < half, axis=1)
    row = np.arange(3000)
    # A key is told from all else by its half of the vocabulary.
    assert ((tokens < half).sum(1) == 2).all() and tokens.min() == 1
    assert (tokens[row, places] == tokens[:, -2]).all()
    assert (tokens[row, places + 1] == tokens[:, -1]).all()
    assert (weights.sum(1) == 1).all() and (weights[:, -1] == 1).all()
    # At random: everywhere before the question.
    assert set(places) == set(range(row_tokens - 3))


def test_depths_are_taken_in_turn_from_the_beginning_to_the_end():
    tokens, _ = made(NeedleRows(128, 43, (0, 0.5, 1)), 6)
    # The first token of the needle has 40 places, 0 ... 39.
    assert np.argmax(tokens < 64, axis=1).tolist() == [0, 19, 39] * 2


@pytest.mark.parametrize(("tokenizer", "row_tokens"), [("bytes", 700), ("world", 200)])
def test_the_number_in_the_text_is_the_answer(tokenizer, row_tokens):
    rows = PasskeyRows(tokenizer, row_tokens, (0, 0.4, 1))
    rows.check()
    tokens, weights = made(rows, 30)
    known = load_tokenizer(tokenizer)
    line = len(known.encode(LINE))
    depths = []
    for ids, counts in zip(tokens, weights):
        (answer,) = (known.decode(ids[counts > 0].tolist()),)
        begin = int(np.argmax(counts > 0))
        prompt = known.decode(ids[:begin].tolist())
        assert re.fullmatch(" [0-9]{5}", answer)
        assert prompt.endswith("The secret number is") and prompt.count(answer.strip()) == 2
        # As the prompt of a user would be encoded.
        assert known.encode(prompt) == ids[:begin].tolist()
        end = begin + int((counts > 0).sum())
        assert 1 <= row_tokens - end < 2 * line + 1 and not ids[end:].any()
        lines = prompt.split("\n")[2:-2]
        depths.append((answer.strip() in lines[0], answer.strip() in lines[-1]))
    assert depths == [(True, False), (False, False), (False, True)] * 10


def test_a_row_too_short_for_a_needle_is_refused_with_the_least_length():
    with pytest.raises(DataError, match=r"at least [0-9]+ tokens") as refusal:
        PasskeyRows("bytes", 200).check()
    least = int(re.search("at least ([0-9]+)", str(refusal.value)).group(1))
    PasskeyRows("bytes", least).check()
    tokens, weights = made(PasskeyRows("bytes", least), 20)
    assert (tokens[:, -1] == 0).all() and (weights.sum(1) == 6).all()
