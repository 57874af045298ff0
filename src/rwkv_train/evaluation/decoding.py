"""Texts that a model writes behind many contexts, each until it has had enough."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rwkv_train.data.tokenize.tokenizer import Tokenizer
from rwkv_train.evaluation.scoring import Scorer
from rwkv_train.inference.engine.engine import Engine
from rwkv_train.inference.sampling import Sampler, SamplingOptions, sequence_generator
from rwkv_train.inference.writing import TextWriter
from rwkv_train.inference.writing_together import ReadSequence, WrittenTexts

GREEDY = SamplingOptions(temperature=0)


class Request(NamedTuple):
    """A context of at least one token, and when its continuation ends.

    until: texts that are not part of it.  max_tokens: at most so many.  options: how to choose.
    """

    context: Sequence[int]
    until: Sequence[str] = ()
    max_tokens: int = 256
    options: SamplingOptions = GREEDY


def write_continuations(
    scorer: Scorer, tokenizer: Tokenizer, requests: Sequence[Request], *, seed: int = 0
) -> list[TextWriter]:
    """Returns the writers of what follows each context, whose texts have ended.

    seed: with the number of the request, of what is drawn: which requests are read together does
    not matter.
    """
    order = sorted(range(len(requests)), key=lambda i: len(requests[i].context))
    found: dict[int, TextWriter] = {}
    for batch in _batches(order, scorer.batch_size):
        engine = Engine(scorer.model, piece_tokens=scorer.chunk_len * len(batch))
        logits, states = engine.prefill([requests[i].context for i in batch])
        writers = [_writer(tokenizer, requests[i], seed, i) for i in batch]
        begun = [ReadSequence(*both) for both in zip(states, logits)]
        # Nobody waits for a piece; the writers keep their texts.
        for _ in WrittenTexts(engine, tokenizer, begun, writers).pieces():
            scorer.pulse()
        found.update(zip(batch, writers))
    return [found[i] for i in range(len(requests))]


def _writer(tokenizer: Tokenizer, request: Request, seed: int, number: int) -> TextWriter:
    return TextWriter(
        tokenizer,
        Sampler(request.options, sequence_generator(seed, number)),
        max_tokens=request.max_tokens,
        stop=[stop for stop in request.until if stop],
        last_tokens=request.context,
    )


def _batches(order: list[int], size: int) -> Iterator[list[int]]:
    for first in range(0, len(order), size):
        yield order[first : first + size]
