"""Text from a model: parallel prefill, then one token at a time with a state of constant size."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from rwkv_train.data.tokenize.tokenizer import END_OF_DOCUMENT, Tokenizer
from rwkv_train.inference.engine.engine import Engine
from rwkv_train.inference.sampling import Sampler
from rwkv_train.inference.streaming import TextStream
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.state import ModelState


def prefill(model: RWKV, tokens: list[int]) -> tuple[Tensor, ModelState]:
    """Returns the logits [V] after the last of `tokens` (at least one) and the state there."""
    logits, states = Engine(model).prefill([tokens])
    return logits[0], states[0].alone()


def generate_tokens(
    model: RWKV,
    prompt: list[int],
    sampler: Sampler,
    max_tokens: int,
    end: int | None = END_OF_DOCUMENT,
) -> Iterator[int]:
    """Yields up to max_tokens tokens after `prompt`; ends early at the token `end`.

    An empty prompt stands for the start of a document.
    """
    # Training data ends every document with this token: it stands before every next one.
    engine = Engine(model)
    logits, states = engine.prefill([prompt or [END_OF_DOCUMENT]])
    for _ in range(max_tokens):
        token = sampler.draw(logits[0])
        if token == end:
            return
        yield token
        logits, states = engine.step([token], states)


def generate_text(
    model: RWKV, tokenizer: Tokenizer, prompt: str, sampler: Sampler, max_tokens: int
) -> Iterator[str]:
    """Yields the generated text as it comes, in pieces that end between characters.

    Rows of the head beyond the tokenizer's tokens (padding) stand for no text and are skipped.
    """
    tokens = tokenizer.encode(prompt)
    stream = TextStream(tokenizer, tokens)
    end = tokenizer.end_of_document
    for token in generate_tokens(model, tokens, sampler, max_tokens, end):
        piece = stream.add(token) if token < tokenizer.vocab_size else ""
        if piece:
            yield piece
    rest = stream.finish()
    if rest:
        yield rest
