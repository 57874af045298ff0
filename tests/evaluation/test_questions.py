"""Choices and last words by hand, and where a context and its continuation are cut."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_train.data.tokenize.tokenizer import Tokenizer, load_tokenizer
from rwkv_train.errors import DataError
from rwkv_train.evaluation import questions
from rwkv_train.evaluation.continuations import ContinuationScore, encode_pair, is_cut_plainly
from rwkv_train.evaluation.questions import (
    Question,
    evaluate_choices,
    evaluate_last_words,
    read_question,
    split_last_word,
)
from rwkv_train.evaluation.scoring import Scorer
from tests.evaluation.small_vocabulary import small_tokenizer
from tests.models.tiny import tiny_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("vocabulary"))


def cut(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[bytes, bytes]:
    before, after = encode_pair(tokenizer, context, continuation)
    assert before + after == tokenizer.encode(context + continuation)
    return tokenizer.decode_bytes(before), tokenizer.decode_bytes(after)


def test_texts_are_cut_where_the_continuation_begins(tokenizer: Tokenizer):
    assert cut(tokenizer, "a duck", " swims") == (b"a duck", b" swims")
    assert is_cut_plainly(tokenizer, "a duck", " swims")


def test_white_space_at_the_end_of_a_context_goes_to_the_continuation(tokenizer: Tokenizer):
    assert cut(tokenizer, "a duck  ", "swims") == (b"a duck", b"  swims")
    assert cut(tokenizer, "a duck\n", "\nswims") == (b"a duck", b"\n\nswims")
    assert cut(tokenizer, "  ", "swims") == (b"", b"  swims")


def test_a_token_that_spans_the_border_belongs_to_the_continuation(tokenizer: Tokenizer):
    # "is so" is one token: cutting behind the two that "is" has alone would leave "is so" out.
    assert not is_cut_plainly(tokenizer, "it is", " so")
    assert cut(tokenizer, "it is", " so") == (b"it ", b"is so")
    assert len(encode_pair(tokenizer, "it is", " so")[1]) == 1
    # One token holds all of the context.
    assert cut(tokenizer, "ab", "c") == (b"", b"abc")


@settings(max_examples=60, deadline=None)
@given(context=st.text("abc is🦆o\n", max_size=12), continuation=st.text("abc is🦆o\n", max_size=8))
def test_any_cut_loses_nothing_and_comes_no_later_than_the_border(
    tokenizer: Tokenizer, context: str, continuation: str
):
    before, after = cut(tokenizer, context, continuation)
    kept = context.rstrip().encode()
    assert before + after == (context + continuation).encode()
    assert kept.startswith(before)
    # And no earlier than a token's length before it.
    assert len(kept) - len(before) < 5


SCORES = {" short": -4.0, " much longer": -6.0, " ääääääää": -5.9}


def scores_of(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> None:
    """Lets continuations have the scores above, whatever the model."""

    def score(_: object, pairs: list[tuple[list[int], list[int]]]) -> list[ContinuationScore]:
        texts = [tokenizer.decode(continuation) for _, continuation in pairs]
        return [ContinuationScore(SCORES[text], text == " short") for text in texts]

    monkeypatch.setattr(questions, "score_continuations", score)


def test_choices_are_weighed_by_sum_by_character_and_by_byte(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
):
    scores_of(monkeypatch, tokenizer)
    choices = tuple(text.strip() for text in SCORES)
    asked = [Question("Which", choices, answer) for answer in range(3)]
    figures = evaluate_choices(None, tokenizer, asked, prefix=True)
    # -4, -6, -5.9; -4/5, -6/11, -5.9/8 a character; -4/5, -6/11, -5.9/16 a byte
    assert figures.right == {
        "acc": [True, False, False],
        "acc_norm": [False, True, False],
        "acc_bytes": [False, False, True],
    }
    values = figures.values()
    assert values["chance"] == pytest.approx(1 / 3) and values["acc"] == pytest.approx(1 / 3)
    assert values["acc_stderr"] == pytest.approx(math.sqrt(1 / 3 * 2 / 3 / 2))


def test_of_equal_choices_the_first_counts(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer):
    scores_of(monkeypatch, tokenizer)
    asked = [Question("Which", ("short", "short"), answer) for answer in (0, 1)]
    assert evaluate_choices(None, tokenizer, asked, prefix=True).right["acc"] == [True, False]


def test_last_words_are_encoded_apart_behind_a_0():
    model, tokenizer = tiny_model("6", vocab_size=257), load_tokenizer("bytes")
    texts = [split_last_word("line 1", "Ducks swim fast"), split_last_word("line 2", "It is  so")]
    assert texts == [("Ducks swim", " fast"), ("It is ", " so")]
    figures = evaluate_last_words(Scorer(model), tokenizer, texts, prefix=True)
    expected = []
    for context, word in texts:
        before, after = [0, *tokenizer.encode(context)], tokenizer.encode(word)
        with torch.no_grad():
            logits = model(torch.tensor([before + after]))[0][0, len(before) - 1 : -1].double()
        expected.append(logits.log_softmax(1)[range(len(after)), after].sum().item())
    assert figures.log_probabilities == pytest.approx(expected, rel=1e-6)
    assert figures.values()["perplexity"] == pytest.approx(math.exp(-sum(expected) / 2), rel=1e-5)


GOOD = {"question": "Which", "choices": ["a", "b"], "answer": 1}


def test_an_answer_is_an_index_or_one_of_the_choices():
    assert read_question("here", GOOD) == Question("Which", ("a", "b"), 1)
    assert read_question("here", {**GOOD, "answer": "a"}).answer == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"question": None}, "'question' must be a text"),
        ({"choices": "ab"}, "list of two texts"),
        ({"choices": ["a"]}, "list of two texts"),
        ({"choices": ["a", ""]}, "not empty"),
        ({"answer": 2}, "'answer' is 2; expected 0 ... 1"),
        ({"answer": True}, "'answer' is True"),
        ({"answer": "c"}, "'answer' is 'c'"),
    ],
)
def test_a_row_that_is_no_question_is_told_with_its_place(change: dict[str, Any], words: str):
    with pytest.raises(DataError, match=f"^q.jsonl, line 3: .*{words}"):
        read_question("q.jsonl, line 3", {**GOOD, **change})


def test_the_rows_in_the_project_are_questions_with_balanced_answers():
    rows = (Path(questions.__file__).parent / "tasks" / "kinds.jsonl").read_text().splitlines()
    asked = [read_question("row", json.loads(row)) for row in rows]
    answers = [question.choices[question.answer] for question in asked]
    assert {name: answers.count(name) for name in answers} == dict.fromkeys(
        ("bird", "fish", "tree", "tool"), 10
    )
    # The place of the right one says nothing either.
    places = [question.answer for question in asked]
    assert all(places.count(place) == 10 for place in range(4))
