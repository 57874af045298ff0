"""Needles lie where they should, and the answer is what they say."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest

from rwkv_train.data.synthetic.needle import LINE, NAMES, NeedleRows, PasskeyRows
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


@pytest.mark.parametrize(
    # The last two rows are full of needles: as many lie before the one in the middle as fit.
    ("vocab_size", "row_tokens", "needles", "before"),
    [(8, 13, 2, {0, 1}), (64, 41, 5, {0, 1, 2, 3, 4}), (8, 9, 3, {1}), (64, 41, 19, {9})],
)
def test_of_several_needles_one_is_asked_and_none_lies_within_another(
    vocab_size, row_tokens, needles, before
):
    rows = NeedleRows(vocab_size, row_tokens, (0, 0.5, 1), needles)
    rows.check()
    tokens, weights = made(rows, 600)
    half, depths, asked = vocab_size // 2, (0, 0.5, 1), []
    for number, row in enumerate(tokens.tolist()):
        places = [place for place, token in enumerate(row[:-2]) if token < half]
        keys = [row[place] for place in places]
        # As many keys as needles, all different, and behind each a token that is none.
        assert len(keys) == len(set(keys)) == needles
        assert all(row[place + 1] >= half for place in places) and places[-1] <= row_tokens - 4
        asked.append(keys.index(row[-2]))
        place = places[asked[-1]]
        assert place == int(depths[number % 3] * (row_tokens - 4)) and row[place + 1] == row[-1]
    assert (weights.sum(1) == 1).all() and (weights[:, -1] == 1).all()
    assert set(asked[::3]) == {0} and set(asked[1::3]) == before
    assert set(tokens[:, -2].tolist()) == set(range(1, half))


def test_of_several_numbers_in_a_text_the_asked_name_tells_which():
    rows = PasskeyRows("bytes", 1400, (0, 1), needles=4)
    rows.check()
    tokens, weights = made(rows, 40)
    known = load_tokenizer("bytes")
    asked_names = set()
    for number, (ids, counts) in enumerate(zip(tokens, weights)):
        begin = int(np.argmax(counts > 0))
        prompt, answer = (known.decode(ids[part].tolist()) for part in (np.s_[:begin], counts > 0))
        told = re.findall(r"The (\w+) number is ([0-9]{5})\.", prompt)
        assert len({name for name, _ in told}) == len(told) == 4
        name = re.search(r"Which (\w+) number was told above\? The \1 number is$", prompt)[1]
        assert answer == f" {dict(told)[name]}" and name in NAMES
        assert told[-(number % 2)][0] == name
        lines = prompt.split("\n")[2:-2]
        assert name in lines[-(number % 2)]
        asked_names.add(name)
    assert len(asked_names) > 10
    least = int(re.search("at least ([0-9]+)", refused(PasskeyRows("bytes", 300, needles=4)))[1])
    made(PasskeyRows("bytes", least, needles=4), 40)


def refused(rows):
    """What is said of settings of which no row can be made."""
    with pytest.raises(DataError) as refusal:
        rows.check()
    return str(refusal.value)


def test_more_needles_than_there_is_room_for_are_refused_with_the_most():
    assert "--needles is 20; with --ctx_len 41 and --vocab_size 64 it must be from 1 to 19" in (
        refused(NeedleRows(64, 41, needles=20))
    )
    assert "must be from 1 to 3" in refused(NeedleRows(8, 64, needles=4))
    assert "must be from 1 to" in refused(NeedleRows(needles=0))
    assert "--needles is 21; it must be from 1 to 20" in refused(PasskeyRows(needles=21))


@pytest.mark.parametrize(
    ("rows", "digest"),
    [
        (NeedleRows(128, 64), "11919d41c5842f4c"),
        (NeedleRows(128, 64, (0, 0.5, 1)), "f0b6c5bf72aec185"),
        (PasskeyRows("bytes", 700), "d2d504e272b44b69"),
    ],
)
def test_rows_of_one_needle_are_those_made_before_there_could_be_several(rows, digest):
    tokens, weights = made(rows, 50, seed=3)
    content = tokens.astype("<i4").tobytes() + weights.tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == digest
