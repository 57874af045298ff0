"""Continuations of many contexts at once, one token at a time, each until it has had enough."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from rwkv_train.data.tokenize.tokenizer import Tokenizer
from rwkv_train.evaluation.continuations import Ids, contexts_with_states
from rwkv_train.evaluation.scoring import Scorer, rows_of
from rwkv_train.inference.sampling import Sampler, SamplingOptions
from rwkv_train.models.state import ModelState

GREEDY = SamplingOptions(temperature=0)
# Tokens decoded together to look for a stop string that spans several.
_TAIL_TOKENS = 32


class Request(NamedTuple):
    """A context of at least one token, and when its continuation ends.

    until: texts that are not part of it.  max_tokens: at most so many.  options: how to choose.
    """

    context: Ids
    until: tuple[str, ...] = ()
    max_tokens: int = 256
    options: SamplingOptions = GREEDY


def continuations(
    scorer: Scorer, tokenizer: Tokenizer, requests: Sequence[Request], *, seed: int = 0
) -> list[str]:
    """Returns the text that follows each context, up to its end or the first of its stop texts.

    seed: with the number of the request, of what is drawn: it does not matter which requests are
    read together.
    """
    numbers: dict[Ids, list[int]] = {}
    for number, request in enumerate(requests):
        numbers.setdefault(request.context, []).append(number)
    found: dict[int, str] = {}
    for contexts, state in contexts_with_states(scorer, list(numbers)):
        writers, rows = [], []
        for row, context in enumerate(contexts):
            for number in numbers[context]:
                writers.append(_Writer(tokenizer, requests[number], seed + number, number))
                rows.append(row)
        own = None if state is None else rows_of(state, rows)
        found.update(_write_all(scorer, writers, own))
    return [found[number] for number in range(len(requests))]


class _Writer:
    """One continuation while it grows."""

    def __init__(self, tokenizer: Tokenizer, request: Request, seed: int, number: int) -> None:
        self.number = number
        self.last = request.context[-1]
        self._tokenizer, self._request = tokenizer, request
        self._sampler = Sampler(request.options, torch.Generator().manual_seed(seed))
        self._tokens: list[int] = []
        self._ended = request.max_tokens < 1

    def take(self, logits: torch.Tensor) -> bool:
        """Adds a token; returns whether the continuation goes on.  logits: [V]."""
        if self._ended:
            return False
        # Rows beyond the tokenizer's stand for no text.
        token = self._sampler.draw(logits[: self._tokenizer.vocab_size])
        if token == self._tokenizer.end_of_document:
            return False
        self._tokens.append(token)
        self.last = token
        self._ended = len(self._tokens) >= self._request.max_tokens
        longest = max(map(len, self._request.until), default=0)
        tail = self._tokenizer.decode(self._tokens[-max(_TAIL_TOKENS, longest + 4) :])
        return not self._ended and not any(stop in tail for stop in self._request.until if stop)

    def text(self) -> str:
        """Returns what was written before the first stop text."""
        text = self._tokenizer.decode(self._tokens)
        for stop in filter(None, self._request.until):
            text = text.partition(stop)[0]
        return text


@torch.no_grad()
def _write_all(
    scorer: Scorer, writers: list[_Writer], state: ModelState | None
) -> Iterator[tuple[int, str]]:
    model = scorer.model
    active = writers
    while active:
        tokens = torch.tensor([[writer.last] for writer in active])
        logits, state = model(tokens.to(model.emb.weight.device), state)
        going_on = [row for row, writer in enumerate(active) if writer.take(logits[row, 0])]
        if len(going_on) < len(active):
            active = [active[row] for row in going_on]
            state = rows_of(state, going_on) if going_on else None
    for writer in writers:
        yield writer.number, writer.text()
