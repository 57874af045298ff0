"""Text from a model: parallel prefill, then one token at a time with a state of constant size."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from rwkv_train.data.tokenize.tokenizer import END_OF_DOCUMENT, Tokenizer
from rwkv_train.inference.engine.engine import Engine
from rwkv_train.inference.writing import Draws, TextWriter
from rwkv_train.inference.writing_together import ReadSequence, WrittenTexts
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.state import ModelState


def prefill(model: RWKV, tokens: list[int]) -> tuple[Tensor, ModelState]:
    """Returns the logits [V] after the last of `tokens` (at least one) and the state there."""
    logits, states = Engine(model).prefill([tokens])
    return logits[0], states[0].alone()


def generate_tokens(
    model: RWKV,
    prompt: list[int],
    sampler: Draws,
    max_tokens: int,
    end: int | None = END_OF_DOCUMENT,
) -> Iterator[int]:
    """Yields up to max_tokens tokens after `prompt`; ends early at the token `end`.

    An empty prompt stands for the start of a document.
    """
    # Training data ends every document with this token: it stands before every next one.
    engine = Engine(model)
    logits, states = engine.prefill([prompt or [END_OF_DOCUMENT]])
    for drawn in range(1, max_tokens + 1):
        token = sampler.draw(logits[0])
        if token == end:
            return
        yield token
        if drawn < max_tokens:
            logits, states = engine.step([token], states)


def generate_text(
    model: RWKV, tokenizer: Tokenizer, prompt: str, sampler: Draws, max_tokens: int
) -> Iterator[str]:
    """Yields the generated text as it comes, in pieces that end between characters.

    Rows of the head beyond the tokenizer's tokens (padding) stand for no text and are skipped.
    """
    tokens = tokenizer.encode(prompt)
    engine = Engine(model)
    # As in `generate_tokens`: the start of a document.
    logits, (state,) = engine.prefill([tokens or [END_OF_DOCUMENT]])
    writer = TextWriter(tokenizer, sampler, max_tokens=max_tokens, last_tokens=tokens)
    written = WrittenTexts(engine, tokenizer, [ReadSequence(state, logits[0])], [writer])
    for _, piece in written.pieces():
        yield piece
