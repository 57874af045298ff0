"""Chat templates: RWKV World's format to the character, one's own from a file, nothing executed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_train.data.chat.rows import Message
from rwkv_train.data.chat.template import WORLD, Segment, load_template
from rwkv_train.errors import DataError

CHATML = """
# as some models know it
begin: "<s>"
roles:
  system: {before: "<|im_start|>system\\n", after: "<|im_end|>\\n"}
  user: {before: "<|im_start|>user\\n", after: "<|im_end|>\\n"}
  tool: {before: "<|im_start|>tool\\n", after: "<|im_end|>\\n"}
  assistant: {before: "<|im_start|>assistant\\n", after: "<|im_end|>\\n", weight: 2}
strip: false
"""


def own(tmp_path, text, name="own.yaml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return load_template(str(path))


def test_the_world_template_learns_answers_and_their_ends():
    messages = [
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "Hello!"),
        Message("user", "Bye"),
        Message("assistant", "See you."),
    ]
    assert WORLD.segments(messages) == [
        Segment("System: Be brief.\n\nUser: Hi\n\nAssistant:", 0),
        Segment(" Hello!", 1),
        Segment("\n\n", 1),
        Segment("User: Bye\n\nAssistant:", 0),
        Segment(" See you.", 1),
        Segment("\n\n", 1),
    ]


def test_a_prompt_is_the_training_data_up_to_the_next_answer():
    messages = [
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "Hello!"),
        Message("tool", "3"),
    ]
    expected = WORLD.segments([*messages, Message("assistant", "x")])[:-2]
    assert WORLD.prompt(messages) == [segment.text for segment in expected]
    assert WORLD.prompt(messages[:2]) == ["System: Be brief.\n\nUser: Hi\n\nAssistant:"]
    assert WORLD.prompt([]) == ["Assistant:"]


def test_blank_lines_inside_a_message_become_single_newlines():
    messages = [Message("user", "\r\n a\r\n\r\n\r\n  b\nc \n"), Message("gpt", "d\n \t\n  e")]
    assert WORLD.segments(messages) == [
        Segment("User: a\n  b\nc\n\nAssistant:", 0),
        Segment(" d\n  e", 1),
        Segment("\n\n", 1),
    ]


@given(st.lists(st.text(st.sampled_from("a\n \t\r\u3002\u00a0"), max_size=9), min_size=2))
def test_a_message_never_holds_the_end_of_a_message(contents):
    messages = [Message("user" if i % 2 else "human", text) for i, text in enumerate(contents)]
    messages = [m for m in messages if m.content.strip()] + [Message("gpt", "x\n\ny")]
    segments = WORLD.segments(messages)
    assert "".join(segment.text for segment in segments).count("\n\n") == len(messages)


def test_what_follows_the_last_answer_is_not_learnt():
    messages = [Message("assistant", "Hi"), Message("user", "Bye")]
    assert WORLD.segments(messages)[-1] == Segment("User: Bye\n\n", 0)


def test_a_message_s_own_weight_wins():
    messages = [Message("user", "a"), Message("assistant", "b", 0), Message("assistant", "c", 3)]
    assert WORLD.segments(messages) == [
        Segment("User: a\n\nAssistant: b\n\nAssistant:", 0),
        Segment(" c", 3),
        Segment("\n\n", 3),
    ]


def test_an_empty_system_message_is_left_out():
    messages = [Message("system", " "), Message("user", "a"), Message("assistant", "b")]
    assert WORLD.segments(messages)[0].text == "User: a\n\nAssistant:"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (
            [Message("wizard", "a")],
            "message 1: the chat template has no role 'wizard', only system, user",
        ),
        (
            [Message("user", "a"), Message("system", "b")],
            "message 2: only the first message may be",
        ),
        ([Message("user", "a"), Message("assistant", " \n")], r"message 2 \(assistant\) is empty"),
        ([Message("user", "a")], "nothing to learn: no message of assistant"),
        ([Message("user", "a"), Message("assistant", "b", 0)], "nothing to learn"),
    ],
)
def test_a_conversation_that_does_not_fit_is_refused(messages, reason):
    with pytest.raises(DataError, match=reason):
        WORLD.segments(messages)


def test_a_template_of_one_s_own_is_written_as_it_says(tmp_path):
    template = own(tmp_path, CHATML)
    messages = [Message("human", "a\n\nb "), Message("tool", "t"), Message("gpt", "c")]
    assert template.segments(messages) == [
        Segment(
            "<s><|im_start|>user\na\n\nb <|im_end|>\n<|im_start|>tool\nt<|im_end|>\n"
            "<|im_start|>assistant\n",
            0,
        ),
        Segment("c", 2),
        Segment("<|im_end|>\n", 2),
    ]


def test_its_identity_follows_what_it_says_not_how_it_is_written(tmp_path):
    roles = {"a": {"before": "A: ", "weight": 1}, "b": {}}
    json_file = own(tmp_path, json.dumps({"roles": roles}), "t.json")
    yaml_file = own(tmp_path, "# other\nroles:\n  b: {}\n  a:\n    weight: 1\n    before: 'A: '\n")
    assert json_file.identity == yaml_file.identity != WORLD.identity == "world"
    roles["a"]["weight"] = 2
    assert own(tmp_path, json.dumps({"roles": roles})).identity != json_file.identity


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("roles: [", "is not readable YAML or JSON"),
        ("- a", "it must be a mapping with some of roles, begin, blank_lines, strip"),
        ("begin: x", "it has no 'roles'"),
        ("roles: {a: {before: x}}", "no role has a weight above 0"),
        ("roles: {a: {weight: 1, code: x}}", "role 'a' has an unknown entry 'code'"),
        ("roles: {a: {weight: 256}}", "role 'a': 'weight' is 256"),
        ("roles: {a: {weight: 0.5}}", "'weight' is 0.5"),
        ("roles: {a: {weight: true}}", "'weight' is True"),
        ("roles: {a: {weight: 1, before: 3}}", "role 'a': 'before' is 3; it must be a string"),
        ("roles: {a: x}", "role 'a' must be a mapping"),
        ("{roles: {a: {weight: 1}}, blank_lines: many}", "'blank_lines' is 'many'"),
        ("{roles: {a: {weight: 1}}, strip: maybe}", "'strip' is 'maybe'; it must be true or false"),
        ("{roles: {a: {weight: 1}}, jinja: x}", "it has an unknown entry 'jinja'"),
        ("!!python/object/apply:os.getcwd []", "is not readable YAML or JSON"),
    ],
)
def test_a_file_that_is_no_template_is_refused_on_one_line(text, reason, tmp_path):
    with pytest.raises(DataError) as caught:
        own(tmp_path, text)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_a_name_that_is_no_file_is_refused():
    with pytest.raises(DataError, match=r"nothing\.yaml is neither 'world' nor an existing file"):
        load_template("nothing.yaml")
