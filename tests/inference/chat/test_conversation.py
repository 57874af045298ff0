"""A chat reads what training data hold, and goes back as if nothing had been."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_train.data.chat.rows import Message
from rwkv_train.data.chat.template import WORLD, load_template
from rwkv_train.data.tokenize.tokenizer import Tokenizer, load_tokenizer
from rwkv_train.errors import ConfigError
from rwkv_train.inference.chat.answer_openings import CALL, THINKING
from rwkv_train.inference.engine.engine import Engine
from tests.helpers import assert_close
from tests.inference.chat.scripted import BYTES, Recited, ScriptedChat, tiny_engine

CHATML = """
begin: "<s>"
roles:
  system: {before: "<|im_start|>system\\n", after: "<|im_end|>\\n"}
  user: {before: "<|im_start|>user\\n", after: "<|im_end|>\\n"}
  assistant: {before: "<|im_start|>assistant\\n", after: "<|im_end|>\\n", weight: 1}
"""
# Words that end in what makes separators hard: full-width stops, quotes, digits, emoji.
WORDS = st.text(st.sampled_from("ab 1。！」\n\tÜ🙂:"), min_size=1, max_size=8).filter(str.strip)


@pytest.fixture(scope="module")
def world() -> Tokenizer:
    return load_tokenizer("world")


@pytest.fixture(scope="module")
def world_engine(world: Tokenizer) -> Engine:
    return tiny_engine(world)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine()


def trained(template, tokenizer: Tokenizer, messages: list[Message]) -> list[int]:
    """The tokens of training data up to the last answer, without its end."""
    texts = [segment.text for segment in template.segments(messages)]
    return [token for text in texts[:-1] for token in tokenizer.encode(text)]


@settings(max_examples=15)
@given(system=st.just("") | WORDS, words=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3))
def test_what_is_read_is_what_training_data_hold(world_engine, world, system, words):
    chat = ScriptedChat(world_engine, world, system=system)
    messages = [Message("system", system)] if system.strip() else []
    for question, answer in words:
        messages += [Message("user", question), Message("assistant", answer)]
        chat.talk.ask(messages[-2])
        # As the model has learnt it: the answer in its own words, then the token of the end.
        learnt = [segment.text for segment in WORLD.segments(messages)][-2:]
        chat.reply([token for text in learnt for token in world.encode(text)])
    expected = trained(WORLD, world, messages)
    assert chat.talk.tokens == expected
    chat.assert_state_is_that_of(expected)


def test_a_template_of_ones_own_is_followed_as_well(engine, tmp_path):
    (tmp_path / "t.yaml").write_text(CHATML)
    template = load_template(str(tmp_path / "t.yaml"))
    chat = ScriptedChat(engine, template=template, system="S")
    messages = [Message("system", "S")]
    for question, answer in (("a", "b"), ("c", "d")):
        messages += [Message("user", question), Message("assistant", answer)]
        chat.talk.ask(messages[-2])
        assert chat.reply(f"{answer}<|im_end|>")[0] == answer
    assert chat.talk.tokens == trained(template, BYTES, messages)
    chat.assert_state_is_that_of(chat.talk.tokens)


# What a model may write behind " 好。🙂", and all of which ends the same answer.
@pytest.mark.parametrize(
    "ending", ["\n\n", "\n\n\n", "\n\n\t", " \n\n", "\n\nUser: x", "\n|\n", "\0"]
)
@pytest.mark.parametrize("answer", [" 好。", " Hi.", " 🙂", " 1"])
def test_every_ending_leaves_the_state_of_a_clean_one(world_engine, world, answer, ending):
    chat = ScriptedChat(world_engine, world)
    chat.talk.ask(Message("user", "q"))
    if ending == "\0":
        tokens = [*world.encode(answer), 0]
    else:
        # "|" cuts between tokens; else the tokenizer does, also between the answer and its end.
        first, *rest = (answer + ending).split("|")
        tokens = [token for part in (first, *rest) for token in world.encode(part)]
    assert chat.reply(tokens)[0].strip() == answer.strip()
    question = world.encode("User: q\n\nAssistant:")
    chat.assert_state_is_that_of([*question, *world.encode(answer)])
    assert chat.talk.messages[-1] == Message("assistant", answer.strip())


def test_another_answer_is_drawn_from_what_a_fresh_run_would_draw_from(engine):
    chat = ScriptedChat(engine)
    chat.talk.ask(Message("user", "one"))
    chat.reply(" first\n\n")
    chat.talk.ask(Message("user", "two"))
    _, before = chat.reply(" second\n\n")
    _, again = chat.reply(" other\n\n")
    assert torch.equal(again.logits[0], before.logits[0])
    assert [m.content for m in chat.talk.messages] == ["one", "first", "two", "other"]
    text = "User: one\n\nAssistant: first\n\nUser: two\n\nAssistant:"
    fresh, _ = engine.prefill([BYTES.encode(text)])
    assert_close("logits", again.logits[0], fresh[0], 1e-9)
    chat.assert_state_is_that_of(chat.talk.tokens)


def test_a_message_taken_back_leaves_no_trace(engine):
    chat = ScriptedChat(engine)
    seen = []
    for _ in range(2):
        for number in range(7):
            chat.talk.ask(Message("user", f"q{number}"))
            seen.append(chat.reply(f" a{number}\n\n")[1].logits[0])
        # Back beyond the states that are kept.
        for number in reversed(range(7)):
            assert chat.talk.undo().content == f"q{number}"
            if number:
                chat.assert_state_is_that_of(chat.talk.tokens)
    for first, second in zip(seen[:7], seen[7:], strict=True):
        assert_close("logits", second, first, 1e-9)
    with pytest.raises(ConfigError, match="no message to take back"):
        chat.talk.undo()


@pytest.mark.parametrize("name", ["on", "a bit", "empty"])
def test_a_thought_may_hold_blank_lines_and_is_not_kept(engine, name: str):
    chat = ScriptedChat(engine)
    thought = ">" if name == "empty" else ">one\n\ntwo</think>"
    for number in range(2):
        chat.talk.ask(Message("user", f"q{number}"))
        shown, _ = chat.reply(f"{thought}\nso be it\n\n\n", THINKING[name])
        assert shown == f"{thought}\nso be it" and chat.talk.reason == "stop"
    text = "User: q0\n\nAssistant: so be it\n\nUser: q1\n\nAssistant: so be it"
    assert chat.talk.tokens == BYTES.encode(text)
    chat.assert_state_is_that_of(BYTES.encode(text))


def test_the_prompt_of_a_thought_leaves_its_last_character_to_the_model(engine):
    for name, end, own in (("on", " <think", ">a</think>"), ("empty", " <think>\n</think", ">")):
        chat = ScriptedChat(engine)
        chat.talk.ask(Message("user", "q"))
        _, recited = chat.reply(f"{own}\nx\n\n", THINKING[name])
        logits, _ = engine.prefill([BYTES.encode(f"User: q\n\nAssistant:{end}")])
        assert_close("logits", recited.logits[0], logits[0], 1e-9)


def test_a_function_is_called_and_its_result_answered(engine):
    chat = ScriptedChat(engine)
    chat.talk.ask(Message("user", "weather?"))
    shown, _ = chat.reply('\n{"name":"w","arguments":{}}\n```\n\nUser', CALL)
    assert shown == '\n{"name":"w","arguments":{}}\n```'
    chat.talk.ask(Message("tool", '{"sky": "blue"}'))
    chat.reply(" Blue.\n\n")
    text = (
        'User: weather?\n\nAssistant: ```json\n{"name":"w","arguments":{}}\n```\n\n'
        'User: Function output:\n{"sky": "blue"}\n\nAssistant: Blue.'
    )
    assert chat.talk.tokens == BYTES.encode(text)
    chat.assert_state_is_that_of(BYTES.encode(text))


@pytest.mark.parametrize("name", ["off", "on"])
def test_an_answer_that_was_cut_goes_on(engine, name: str):
    chat = ScriptedChat(engine)
    chat.talk.ask(Message("user", "q"))
    thought = ">\n</think>\n" if name == "on" else ""
    written = BYTES.encode(f"{thought} one two\n\n")
    chat.reply(written[:-6], THINKING[name], max_tokens=len(written) - 6)
    assert (chat.talk.reason, chat.talk.messages[-1].content) == ("length", "one")
    more = "".join(chat.talk.go_on(Recited(written[-6:]), max_tokens=99))
    assert (more, chat.talk.reason, chat.talk.messages[-1].content) == (" two", "stop", "one two")
    chat.assert_state_is_that_of(BYTES.encode("User: q\n\nAssistant: one two"))


def test_an_answer_that_is_broken_off_is_kept_as_far_as_it_came(engine):
    chat = ScriptedChat(engine)
    chat.talk.ask(Message("user", "q"))
    pieces = chat.talk.answer(Recited(BYTES.encode(" abcdef")), THINKING["off"], max_tokens=99)
    assert [next(pieces) for _ in range(3)] == [" ", "a", "b"]
    pieces.close()
    assert (chat.talk.reason, chat.talk.messages[-1].content) == (None, "ab")
    chat.assert_state_is_that_of(BYTES.encode("User: q\n\nAssistant: ab"))


def test_a_message_without_an_answer_is_taken_back_by_the_next(engine):
    chat = ScriptedChat(engine)
    chat.talk.ask(Message("user", "q"))
    chat.reply("\n\n")
    assert chat.talk.unanswered and chat.talk.behind() is None
    chat.talk.ask(Message("user", "again"))
    chat.reply(" yes\n\n")
    assert [m.content for m in chat.talk.messages] == ["again", "yes"]
    chat.assert_state_is_that_of(BYTES.encode("User: again\n\nAssistant: yes"))
