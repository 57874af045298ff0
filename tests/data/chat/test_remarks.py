"""Conversations that look wrong are taken, and the report says where the first one is."""

from __future__ import annotations

import json

import pytest

import make_data
from rwkv_train.data.chat.remarks import remarks
from rwkv_train.data.chat.rows import Message, read_row, row_messages
from rwkv_train.data.chat.template import WORLD
from rwkv_train.errors import DataError

Q, A = Message("human", "q"), Message("gpt", "a")


@pytest.mark.parametrize(
    ("row", "messages", "expected"),
    [
        ({}, [Message("system", "s"), Q, A, Q, A], []),
        ({}, [Q, Message("function_call", "{}"), Message("tool", "r"), A], []),
        ({}, [Q, Q, A], []),
        ({}, [Q, A, A], ["two answers in a row"]),
        ({}, [Message("system", "s"), A], ["an answer without a question"]),
        ({}, [Q, A, Q], ["a last message without an answer"]),
        ({"label": False}, [Q, A], ["'label' false, whose answer is learnt all the same"]),
        ({"label": True}, [Q, A], []),
    ],
)
def test_what_is_odd_is_named(row, messages, expected):
    assert remarks(row, messages, WORLD) == expected


@pytest.mark.parametrize("name", ["train", "loss"])
def test_other_tools_names_of_a_weight_are_understood(name):
    message = {"role": "assistant", "content": "a"}
    row = {"messages": [{**message, name: False}, {**message, name: True}, message]}
    assert [m.weight for m in row_messages(row, "text")] == [0, None, None]
    assert read_row(row, "text").unused == ()


def test_content_that_is_null_is_named():
    row = {"messages": [{"role": "user", "content": None}]}
    with pytest.raises(DataError, match="its keys are: role; null: content"):
        row_messages(row, "text")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_report_counts_and_names_the_first_line(tmp_path, monkeypatch, capsys, workers):
    monkeypatch.chdir(tmp_path)
    sound = {"prompt": "q", "response": "a"}
    question, answer = ({"role": m.role, "content": m.content} for m in (Q, A))
    twice = {"messages": [question, answer, answer]}
    rows = [sound, {"text": "plain"}, twice, sound, twice, {"text": "User: q\n\nAssistant: a"}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    line = ["in.jsonl", "1", "4", "--tokenizer", "bytes", "--chat_template", "world"]
    assert make_data.main([*line, "--workers", workers]) == 0
    out = capsys.readouterr().out
    assert "note: 2 rows with two answers in a row (the first: in.jsonl, line 3)\n" in out
    text = "1 row with a text without a conversation, all of which is learnt"
    assert f"note: {text} (the first: in.jsonl, line 2)\n" in out
