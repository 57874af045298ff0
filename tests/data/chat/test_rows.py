"""Rows of conversations, prompts with answers and texts: what is taken, and what is wrong."""

from __future__ import annotations

import pytest

from rwkv_train.data.chat.rows import Message, row_messages
from rwkv_train.errors import DataError

HI = [Message("user", "hi"), Message("assistant", "hello")]


@pytest.mark.parametrize(
    "row",
    [
        {
            "messages": [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "hello"},
            ]
        },
        {
            "conversations": [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "hello"},
            ],
            "id": 7,
            "text": "not this",
        },
        {"messages": None, "prompt": "hi", "response": "hello"},
        {"prompt": "hi", "completion": "hello"},
        {"prompt": "hi", "answer": "hello"},
        {"question": "hi", "answer": "hello", "text": "not this"},
        {"instruction": "hi", "input": "", "output": "hello"},
        {"instruction": "hi", "output": "hello", "input": None},
        {"input": "hi", "output": "hello"},
    ],
)
def test_every_form_of_a_question_with_its_answer_is_understood(row):
    assert row_messages(row, "text") == HI


def test_sharegpt_s_names_are_taken_as_they_are():
    row = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}
    assert row_messages(row, "text") == [Message("human", "hi"), Message("gpt", "hello")]


def test_an_instruction_and_its_input_are_one_message_and_a_system_text_comes_first():
    row = {"system": "Be kind.", "instruction": "Translate.", "input": "chat", "output": "cat"}
    assert row_messages(row, "text") == [
        Message("system", "Be kind."),
        Message("user", "Translate.\nchat"),
        Message("assistant", "cat"),
    ]


def test_a_text_is_a_text():
    assert row_messages({"body": "words"}, "body") == "words"


def test_a_message_may_say_its_weight():
    row = {
        "messages": [
            {"role": "assistant", "content": "a", "weight": 0},
            {"role": "assistant", "content": "b", "weight": 3.0},
            {"role": "assistant", "content": "c", "weight": None},
        ]
    }
    assert [message.weight for message in row_messages(row, "text")] == [0, 3, None]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"a": 1, "b": 2}, "nor 'text'; the keys are: a, b"),
        ({}, "the keys are: none"),
        ({"line\nbreak": 1}, r"the keys are: line\nbreak"),
        ({"prompt": "hi"}, "the keys are: prompt"),
        ({"messages": "hi"}, "'messages' must be a list of messages, found a string"),
        ({"messages": []}, "'messages' is empty"),
        ({"messages": ["hi"]}, "message 1 must be an object, found a string"),
        ({"messages": [{"role": "user"}]}, "message 1 needs 'role' and 'content'"),
        ({"messages": [{"role": "user", "content": None}]}, "its keys are: role"),
        (
            {"messages": [{"role": "user", "content": {"text": "hi"}}]},
            "message 1: 'content' must be a string, found an object",
        ),
        ({"messages": [{"role": 3, "content": "hi"}]}, "'role' must be a string, found a number"),
        (
            {"messages": [{"role": "a", "content": "b", "weight": 256}]},
            "whole number from 0 to 255",
        ),
        ({"messages": [{"role": "a", "content": "b", "weight": 0.5}]}, "'weight' is 0.5"),
        ({"messages": [{"role": "a", "content": "b", "weight": True}]}, "'weight' is True"),
        ({"messages": [{"role": "a", "content": "b", "value": "c"}]}, "'content' and 'value'"),
        ({"prompt": "a", "response": "b", "answer": "c"}, "'response' and 'answer' mean the same"),
        ({"prompt": "a", "response": 4}, "'response' must be a string, found a number"),
        ({"prompt": ["a"], "response": "b"}, "'prompt' must be a string, found a list"),
        ({"text": 4}, "'text' must be a string"),
    ],
)
def test_what_is_wrong_is_said(row, reason):
    with pytest.raises(DataError) as caught:
        row_messages(row, "text")
    assert reason in str(caught.value)
