"""An answer taken apart is the same however it is cut into pieces."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from rwkv_train.data.chat.template import WORLD
from rwkv_train.inference.chat.answer_openings import CALL, AnswerOpening, thinking
from rwkv_train.serving.openai_api.answer_parts import AnswerParts, joined

ANSWERS = {
    ("off", " \n Hi </think> there"): {"content": "Hi </think> there"},
    ("on", ">\nA < B </thin\n</think>\n\n Yes"): {
        "reasoning_content": "\nA < B </thin\n",
        "content": "Yes",
    },
    ("on", "></think>"): {},
    ("on", ">endless </thi"): {"reasoning_content": "endless </thi"},
    ("empty", ">\n Quick > slow"): {"content": "Quick > slow"},
}


def parted(opening: AnswerOpening, pieces: list[str], **options):
    parts = AnswerParts(WORLD, opening, **options)
    found = {}
    for piece in pieces:
        found = joined(found, parts.add(piece))
    delta, finish = parts.end("stop", options.get("stop"))
    return joined(found, delta), finish


@given(st.sampled_from(sorted(ANSWERS)), st.lists(st.integers(0, 40), max_size=6))
def test_pieces_of_any_length_add_up(case: tuple[str, str], cuts: list[int]):
    way, text = case
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in pairwise(places)]
    assert parted(thinking(way), pieces) == (ANSWERS[case], "stop")


def test_a_template_that_strips_nothing_takes_its_lead_off_alone():
    template = replace(WORLD, strip=False)
    parts = AnswerParts(template, thinking("off"))
    deltas = [parts.add(piece) for piece in (" ", " a")]
    assert deltas == [{}, {"content": " a"}]
    goes_on = AnswerParts(WORLD, thinking("off"), goes_on=True)
    assert goes_on.add("  b") == {"content": "  b"}


def test_calls_are_taken_only_when_they_are_whole():
    def ended(text: str, reason="stop", stop: str | None = CALL.stop):
        parts = AnswerParts(WORLD, CALL)
        assert parts.add(text) == {}
        return parts.end(reason, stop)

    two = '\n{"name":"a","arguments":{"x":1}}\n{"name":"b"}'
    delta, finish = ended(two)
    calls = delta["tool_calls"]
    assert finish == "tool_calls" and [call["index"] for call in calls] == [0, 1]
    assert [call["function"] for call in calls] == [
        {"name": "a", "arguments": '{"x": 1}'},
        {"name": "b", "arguments": "{}"},
    ]
    assert len({call["id"] for call in calls}) == 2
    assert ended("\n[]")[1] == ended('\n{"x":1}')[1] == "stop"
    assert ended(two, "length", None) == ({"content": "```json" + two}, "length")
