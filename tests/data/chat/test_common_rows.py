"""Rows as common data sets have them: nothing is lost in silence, calls are written as calls."""

from __future__ import annotations

import json

import pytest

import make_data
from rwkv_train.data.chat.rows import read_row
from rwkv_train.data.chat.template import WORLD, load_template
from rwkv_train.data.convert.pipeline import convert
from rwkv_train.errors import DataError
from tests.data.chat.conversations import options

HI = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
SHARED = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
BOTH = "User: hi\n\nAssistant: hello\n\n"
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "d",
        "parameters": {
            "type": "object",
            "properties": {"x": {"type": "string"}},
            "required": ["x"],
        },
    },
}
DEFINED = '{"name":"f","description":"d","arguments":{"x":{"type":"string"}},"required":["x"]}'
CALL = '```json\n{"name":"f","arguments":{"x":"ü"}}\n```'


def text_of(row, template=WORLD):
    """What a row is written as, all segments together."""
    return "".join(part.text for part in template.segments(read_row(row, "text").content))


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"system": "Be kind.", "messages": HI}, f"System: Be kind.\n\n{BOTH}"),
        ({"system": "Be kind.", "conversations": SHARED}, f"System: Be kind.\n\n{BOTH}"),
        ({"system_prompt": "s", "question": "hi", "response": "hello"}, f"System: s\n\n{BOTH}"),
        ({"system": "", "messages": HI}, BOTH),
        (
            {"system": "a", "messages": [{"role": "system", "content": "b"}, *HI]},
            f"System: a\nb\n\n{BOTH}",
        ),
        (
            {"system": "a", "messages": [{"role": "system", "content": "a"}, *HI]},
            f"System: a\n\n{BOTH}",
        ),
        (
            {"messages": [{"role": r, "content": r[0]} for r in ("developer", "system")] + HI},
            f"System: d\ns\n\n{BOTH}",
        ),
        ({"messages": [{"role": "developer", "content": "a"}, *HI]}, f"System: a\n\n{BOTH}"),
        (
            {"instruction": "c", "output": "d", "history": [["a", "b"], ["hi", "hello"]]},
            f"User: a\n\nAssistant: b\n\n{BOTH}User: c\n\nAssistant: d\n\n",
        ),
        (
            {"prompt": "c", "response": "d", "history": HI, "system": "s"},
            f"System: s\n\n{BOTH}User: c\n\nAssistant: d\n\n",
        ),
        ({"prompt": "hi", "response": "hello", "history": []}, BOTH),
        ({"query": "hi", "response": "hello"}, BOTH),
        (
            {"instruction": "Say", "context": "hi", "response": "x"},
            "User: Say\nhi\n\nAssistant: x\n\n",
        ),
        ({"prompt": "hi", "chosen": "hello", "rejected": "go"}, BOTH),
        ({"prompt": "hi", "chosen": HI, "rejected": HI}, BOTH),
        ({"prompt": HI[:1], "chosen": HI[1:], "rejected": HI[1:]}, BOTH),
        ({"prompt": HI[:1], "completion": HI[1:]}, BOTH),
        ({"chosen": HI, "rejected": HI}, BOTH),
        ({"conversation": HI, "id": 1}, BOTH),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "a"}, "b"]},
                    HI[1],
                ]
            },
            "User: a\nb\n\nAssistant: hello\n\n",
        ),
    ],
)
def test_common_rows_become_the_conversation_they_mean(row, text):
    assert text_of(row) == text


def call(arguments, **more):
    return {"role": "assistant", "tool_calls": [{"id": "1", "function": arguments}], **more}


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        (
            [HI[0], call({"name": "f", "arguments": '{"x": "ü"}'}, content=None)],
            f"User: hi\n\nAssistant: {CALL}\n\n",
        ),
        (
            [HI[0], call({"name": "f", "arguments": {"x": "ü", "y": None}}, content="Let me see.")],
            f"User: hi\n\nAssistant: Let me see.\n{CALL}\n\n",
        ),
        (
            [
                HI[0],
                {"role": "assistant", "function_call": {"name": "f", "arguments": '{"x":"ü"}'}},
                {"role": "tool", "content": "42", "tool_call_id": "1"},
                HI[1],
            ],
            f"User: hi\n\nAssistant: {CALL}\n\nUser: Function output:\n42\n\nAssistant: hello\n\n",
        ),
        (
            [
                {"from": "human", "value": "hi"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": "ü"}}'},
                {"from": "observation", "value": "42"},
                {"from": "gpt", "value": "hello"},
            ],
            f"User: hi\n\nAssistant: {CALL}\n\nUser: Function output:\n42\n\nAssistant: hello\n\n",
        ),
    ],
)
def test_calls_and_their_results_are_written_as_the_models_read_them(messages, text):
    assert text_of({"messages": messages}) == text
    row = {"messages": messages, "tools": [TOOL], "system": "s"}
    system = f"System: s\nTools:\n[\n{DEFINED}\n]\nReturn only a JSON function call.\n\n"
    assert text_of(row) == system + text
    assert text_of({**row, "tools": json.dumps([TOOL])}) == system + text


def test_tools_that_are_not_called_are_written_too():
    for tools in ([TOOL], json.dumps([TOOL]), TOOL):
        assert text_of({"tools": tools, "messages": HI}).startswith(
            f"System: Tools:\n[\n{DEFINED}\n]\n\nUser:"
        )
    assert text_of({"tools": "f(x)", "messages": HI}).startswith("System: Tools:\nf(x)\n\nUser:")
    for nothing in ("", "[]", [], None):
        assert text_of({"tools": nothing, "messages": HI}) == BOTH


def test_a_template_s_own_role_keeps_its_text_as_it_is(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        "roles: {user: {before: 'U:'}, function_call: {before: 'F:', weight: 1}, "
        "developer: {before: 'D:'}}"
    )
    messages = [("developer", "d"), ("user", "u"), ("function_call", "not json")]
    row = {"conversations": [{"from": role, "value": text} for role, text in messages]}
    assert text_of(row, load_template(str(path))) == "D:dU:uF:not json"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "u"}]}]},
            "message 1: part 1 is of type 'image_url'; only text can be learnt",
        ),
        (
            {"messages": [HI[0], {"role": "assistant", "content": [{"type": "tool_use"}]}]},
            "message 2: part 1 is of type 'tool_use'",
        ),
        ({"messages": [{"role": "user", "content": [7]}]}, "part 1 must be a string or an object"),
        (
            {"messages": [HI[0], {"role": "assistant", "tool_calls": [{"type": "code"}]}]},
            "message 2: tool call 1 ('code') calls no function",
        ),
        (
            {"messages": [HI[0], call({"name": "f", "arguments": "{x"})]},
            "message 2: tool call 1: its 'arguments' are not JSON",
        ),
        (
            {"conversations": [SHARED[0], {"from": "function_call", "value": "f(x)"}]},
            "message 2 (function_call) is no call of a function in JSON",
        ),
        ({"messages": HI, "system": ["a"]}, "'system' must be a string, found a list"),
        ({"messages": HI, "tools": 5}, "'tools' must be a list of functions, found a number"),
        ({"prompt": "a", "response": "b", "history": [["a"]]}, "'history', entry 1 must be a q"),
        ({"prompt": "a", "response": "b", "history": "x"}, "'history', entry 1 must be a q"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "no role 'wizard'"),
        ({"messages": [*HI, {"role": "system", "content": "a"}]}, "only the first message may be"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(row, reason):
    with pytest.raises(DataError) as caught:
        text_of(row)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("row", "unused"),
    [
        ({"messages": HI, "id": 7, "tags": [], "n": {"x": 1}, "text": " "}, ()),
        ({"messages": HI, "source": "s", "tags": ["a"], "meta": {"a": {"b": "c"}}},
         ("source", "tags", "meta")),
        # UltraChat repeats the first message under another key, Alpaca the whole.
        ({"messages": HI, "prompt": "hi "}, ()),
        ({"messages": HI, "prompt": "other"}, ("prompt",)),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, ("rejected",)),
        ({"instruction": "a", "output": "b", "text": "Below is"}, ("text",)),
        ({"text": "a", "title": "t"}, ("title",)),
        (
            {"messages": [HI[0], {**HI[1], "reasoning_content": "because", "name": "n"}]},
            ("messages[].reasoning_content", "messages[].name"),
        ),
        ({"input": "a", "context": "c", "output": "b"}, ("context",)),
        ({"messages": HI, "x": json.loads("[" * 900 + '"deep"' + "]" * 900)}, ("x",)),
    ],
)  # fmt: skip
def test_text_that_is_not_used_is_named(row, unused):
    assert read_row(row, "text").unused == unused


def test_it_is_told_once_with_counts(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"messages": HI, "source": "s"}] * 3 + [{"messages": HI, "source": "", "why": "w"}]
    (tmp_path / "in.json").write_text(json.dumps(rows))
    line = ["in.json", "1", "2", "--tokenizer", "bytes", "--chat_template", "world"]
    assert make_data.main(line) == 0
    out = capsys.readouterr().out
    assert out.count("text that was not used: 'source' in 3 rows, 'why' in 1 row\n") == 1


def test_columns_of_a_parquet_file_that_are_not_used_are_told(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"messages": [HI], "source": ["s"], "image": [b"\xff"], "n": [1]})
    parquet.write_table(table, tmp_path / "a.parquet")
    given = options(tmp_path)
    made = convert(type(given)([str(tmp_path / "a.parquet")], given.prefix, given.arrangement,
                               "bytes", chat_template="world"))  # fmt: skip
    assert made.unused == {"source": 1}
