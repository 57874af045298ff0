"""Text from a model: parallel prefill, then one token at a time with a state of constant size."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rwkv_train.data.tokenize.tokenizer import END_OF_DOCUMENT, Tokenizer
from rwkv_train.inference.sampling import Sampler
from rwkv_train.inference.streaming import TextStream
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.row_chunks import read_in_chunks
from rwkv_train.models.state import ModelState

# Tokens read at once: bounds the memory of a long prompt, which is read piece by piece.
PREFILL = 1024


@torch.no_grad()
def prefill(model: RWKV, tokens: list[int]) -> tuple[Tensor, ModelState]:
    """Returns the logits [V] after the last of `tokens` (at least one) and the state there."""
    assert tokens, "a prompt has at least one token"
    device = model.emb.weight.device
    row = torch.tensor([tokens], device=device)

    def read(part: slice, state: ModelState | None) -> tuple[Tensor, ModelState]:
        x, state_after = model.features(row[:, part], state)
        # A view would keep the features of the whole piece alive.
        return x[:, -1:].clone(), state_after

    lasts, state = read_in_chunks(read, len(tokens), PREFILL, None)
    logits: Tensor = model.head(lasts[-1])
    return logits[0, 0], state


@torch.no_grad()
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
    logits, state = prefill(model, prompt or [END_OF_DOCUMENT])
    for _ in range(max_tokens):
        token = sampler.draw(logits)
        if token == end:
            return
        yield token
        step = torch.tensor([[token]], device=logits.device)
        all_logits, state = model(step, state)
        logits = all_logits[0, 0]


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
