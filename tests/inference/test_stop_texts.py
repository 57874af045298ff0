"""Stop texts end a text before them, wherever its pieces are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_train.inference.stop_texts import StopTexts


def let_through(pieces: list[str], stops: list[str]) -> tuple[str, str | None]:
    watch = StopTexts(stops)
    text = ""
    for piece in pieces:
        text += watch.add(piece)
        if watch.found:
            return text, watch.found
    return text + watch.finish(), None


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["Hi", "\n", "\nUser"], ["\n\n"], ("Hi", "\n\n")),
        (["。\n", "\n"], ["\n\n"], ("。", "\n\n")),
        (["a\n\n\tb"], ["\n\n"], ("a", "\n\n")),
        (["a\n", "b\n"], ["\n\n"], ("a\nb\n", None)),
        (["xUser: yes"], ["User:", "User: "], ("x", "User: ")),
        (["aab"], ["ab"], ("a", "ab")),
        (["any", "thing"], [], ("anything", None)),
    ],
)
def test_the_text_ends_before_the_first_stop_text(pieces, stops, expected):
    assert let_through(pieces, stops) == expected


@given(st.text("ab\n", max_size=12), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
def test_character_by_character_is_as_good_as_at_once(text: str, stops: list[str]):
    found, stop = let_through(list(text), stops)
    # The stop text that is complete first ends the text.
    ends = [text.find(s) + len(s) for s in stops if s in text]
    if not ends:
        assert (found, stop) == (text, None)
    else:
        assert text.startswith(found + stop) and len(found + stop) == min(ends)


def test_only_what_may_begin_a_stop_text_is_held_back():
    watch = StopTexts(["\n\nUser"])
    assert [watch.add(piece) for piece in ("a\n", "\nUs", "a")] == ["a", "", "\n\nUsa"]


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_stop_texts_count_only_behind_a_thought_and_its_blank_lines(size: int):
    text = ">one\n\ntwo</think>\n\n\nyes\n\nUser"
    watch = StopTexts(["\n\n"], behind="</think>")
    found = ""
    for start in range(0, len(text), size):
        if not watch.found:
            found += watch.add(text[start : start + size])
    assert (found, watch.found) == (">one\n\ntwo</think>\n\n\nyes", "\n\n")
