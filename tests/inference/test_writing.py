"""Texts written together are those written alone, and leave the states of what was kept."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.data.tokenize.tokenizer import BytesTokenizer, load_tokenizer
from rwkv_train.inference.engine.engine import Engine
from rwkv_train.inference.engine.sequence_state import state_tensors
from rwkv_train.inference.sampling import Sampler, SamplingOptions, sequence_generator
from rwkv_train.inference.writing import TextWriter
from rwkv_train.inference.writing_together import ReadSequence, WrittenTexts
from tests.helpers import assert_close
from tests.models.tiny import VERSIONS, tiny_model

BYTES = BytesTokenizer()
PROMPTS = ["one", "a much longer prompt, read in several pieces", "x", "two of them"]


class Recited:
    """Stands in for a Sampler: gives the tokens it was given."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = iter(tokens)

    def draw(self, logits: torch.Tensor) -> int:
        return next(self._tokens)


def written(engine: Engine, prompts: list[str], first: int = 0, tokens: int = 16) -> list[str]:
    """What the seed 7 writes behind some prompts in one batch; first: the first one's number."""
    ids = [BYTES.encode(prompt) for prompt in prompts]
    logits, states = engine.prefill(ids)
    writers = [
        TextWriter(
            BYTES,
            Sampler(SamplingOptions(top_p=0.95), sequence_generator(7, first + n)),
            max_tokens=tokens,
        )
        for n in range(len(ids))
    ]
    begun = [ReadSequence(*both) for both in zip(states, logits)]
    for _ in WrittenTexts(engine, BYTES, begun, writers).pieces():
        pass
    return [writer.text for writer in writers]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_seed_gives_the_same_texts_however_they_are_computed(version: str):
    model = tiny_model(version, vocab_size=257)
    expected = [written(Engine(model), [p], n)[0] for n, p in enumerate(PROMPTS)]
    assert len(set(expected)) == len(PROMPTS) and all(expected)
    for piece in (1, 20, 1024):
        assert written(Engine(model, piece_tokens=piece), PROMPTS) == expected, piece


def recite(
    prompt: str, tokens: list[int], tokenizer=BYTES, **options
) -> tuple[Engine, TextWriter, WrittenTexts]:
    """Has a text written whose tokens are given."""
    engine = Engine(tiny_model("7", vocab_size=tokenizer.vocab_size).double())
    writer = TextWriter(tokenizer, Recited(tokens), **{"max_tokens": 99, **options})
    logits, (state,) = engine.prefill([tokenizer.encode(prompt)])
    texts = WrittenTexts(engine, tokenizer, [ReadSequence(state, logits[0])], [writer])
    assert "".join(piece for _, piece in texts.pieces()) == writer.text
    return engine, writer, texts


def assert_is_behind(found: ReadSequence, engine: Engine, tokens: list[int]) -> None:
    logits, (state,) = engine.prefill([tokens])
    assert_close("logits", found.logits, logits[0], 1e-10)
    assert found.state.position == len(tokens)
    for name, value in state_tensors(state.alone()).items():
        assert_close(name, state_tensors(found.state.alone())[name], value, 1e-10)


@pytest.mark.parametrize(
    ("answer", "text", "reason"),
    [
        (" Hi\n\nUser", " Hi", "stop"),
        (" Hi\0more", " Hi", "end"),
        (" a\nb\0", " a\nb", "end"),
        (" ends\n\0", " ends\n", "end"),
        ("\n\n", "", "stop"),
        (" " + "x" * 98, " " + "x" * 98, "length"),
        (" " + "x" * 97 + "\n", " " + "x" * 97 + "\n", "length"),
    ],
)
def test_the_sequence_left_is_that_of_the_text_alone(answer: str, text: str, reason: str):
    tokens = [0 if character == "\0" else ord(character) + 1 for character in answer]
    engine, writer, texts = recite("Q:", tokens, stop=["\n\n"])
    assert (writer.text, writer.reason) == (text, reason)
    assert_is_behind(texts.sequence(), engine, BYTES.encode("Q:" + text))
    kept = len(text.rstrip())
    assert_is_behind(texts.sequence(0, kept), engine, BYTES.encode("Q:" + text[:kept]))


def test_a_token_that_holds_more_than_its_text_is_taken_apart():
    world = load_tokenizer("world")
    # A full-width full stop with the first newline is one token.
    (stop_and_newline,) = world.encode("。\n")
    tokens = [*world.encode(" 你好"), stop_and_newline, *world.encode("\n")]
    engine, writer, texts = recite("Q:", tokens, world, stop=["\n\n"])
    assert (writer.text, writer.reason) == (" 你好。", "stop")
    assert_is_behind(texts.sequence(), engine, world.encode("Q:") + world.encode(" 你好。"))


def test_no_more_tokens_are_drawn_than_were_asked_for():
    _, writer, _ = recite("Q:", [], max_tokens=0)
    assert (writer.text, writer.reason) == ("", "length")
