"""Texts in which a conversation is written out are learnt like one."""

from __future__ import annotations

import pytest

from rwkv_train.data.chat.rows import Message
from rwkv_train.data.chat.template import WORLD, Segment, load_template
from rwkv_train.data.chat.written_out import written_segments
from rwkv_train.data.convert.pipeline import convert
from tests.data.chat.conversations import options, written


def test_a_text_that_is_a_conversation_gets_the_mask_of_its_messages(tmp_path):
    text = "System: s\n\nUser: a\r\n\r\nAssistant: b\n\nc\n\nUser: d\n\nAssistant: e"
    messages = [("system", "s"), ("user", "a"), ("assistant", "b\n\nc"), ("user", "d")]
    messages.append(("assistant", "e"))
    rows = [
        {"text": text},
        {"messages": [{"role": role, "content": content} for role, content in messages]},
        {"text": text + "\n\n"},
        {"text": text + "\n\nUser:"},
    ]
    convert(options(tmp_path, rows))
    found = written(tmp_path / "out")
    expected = "System: s\n\nUser: a\n\nAssistant:[ b\nc\n\n]User: d\n\nAssistant:[ e\n\n0]"
    assert found == [expected] * 4


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("Question: a\n\nAnswer: b", [("Question: a\n\nAnswer:", 0), (" b", 1)]),
        (
            "Q: a\n\nA: b\n\nQ: c\n\nA: d",
            [("Q: a\n\nA:", 0), (" b", 1), ("\n\n", 1), ("Q: c\n\nA:", 0), (" d", 1)],
        ),
        (
            "Instruction: a\n\nInput: b\n\nResponse: c\n\nd",
            [("Instruction: a\n\nInput: b\n\nResponse:", 0), (" c\n\nd", 1)],
        ),
    ],
)
def test_other_forms_of_question_and_answer_stay_and_get_weights(text, segments):
    assert written_segments(text, WORLD) == [Segment(*segment) for segment in segments]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain words",
        "He said: User: hi\n\nAssistant: hello",
        "User: hi",
        "User: hi\n\nAssistant:",
        "User: hi\nAssistant: hello",
        "Assistant: hello\n\nUser: hi",
        "Users: hi\n\nAssistants: hello",
        "Question: a",
        "Question: a\n\nAnswer: ",
    ],
)
def test_other_texts_are_no_conversations(text):
    assert written_segments(text, WORLD) is None


def test_marks_of_a_template_of_one_s_own_are_found(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        'roles: {user: {before: "<|user|>\\n", after: "\\n"}, '
        'assistant: {before: "<|assistant|>\\n", after: "<|end|>\\n", weight: 1}}\nbegin: "<s>"'
    )
    template = load_template(str(path))
    text = "<s><|user|>\na\n<|assistant|>\nb<|end|>\n"
    assert written_segments(text, template) == template.segments(
        [Message("user", "a"), Message("assistant", "b")]
    )
