"""Scores of continuations of a context, and where the tokens of a pair of texts are cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch

from rwkv_train.data.tokenize.tokenizer import Tokenizer, utf8
from rwkv_train.evaluation.scoring import ScoredRow, Scorer, Tokens, TokenScores, rows_of
from rwkv_train.models.state import LayerState, ModelState

Ids = tuple[int, ...]
Item = TypeVar("Item")
# Tokens by which two encodings of a text may differ at its end.
_NEAR = 16


class ContinuationScore(NamedTuple):
    """The likelihood of a continuation.

    log_probability: sum over its tokens, natural.  is_greedy: whether each is the likeliest.
    """

    log_probability: float
    is_greedy: bool


def score_continuations(
    scorer: Scorer, pairs: Sequence[tuple[Tokens, Tokens]]
) -> list[ContinuationScore]:
    """Returns the scores of continuations, in the order given.

    pairs: context, of at least one token, and continuation. A context that several continuations
    share is read once, and they go on from copies of its state.
    """
    wanted = [(tuple(context), tuple(continuation)) for context, continuation in pairs]
    by_context: dict[Ids, list[Ids]] = {}
    # Equal pairs are scored once.
    for context, continuation in dict.fromkeys(wanted):
        assert context, "a context has at least one token"
        if continuation:
            by_context.setdefault(context, []).append(continuation)
    single = [(context, found[0]) for context, found in by_context.items() if len(found) == 1]
    rows = [
        ScoredRow(context + continuation[:-1], continuation) for context, continuation in single
    ]
    known = {pair: _summed(scores) for pair, scores in zip(single, scorer.score(rows))}
    shared = {context: found for context, found in by_context.items() if len(found) > 1}
    for pair, scores in _score_shared(scorer, shared):
        known[pair] = _summed(scores)
    # Nothing is certain to follow.
    return [known.get(pair, ContinuationScore(0.0, True)) for pair in wanted]


def _score_shared(
    scorer: Scorer, shared: dict[Ids, list[Ids]]
) -> Iterator[tuple[tuple[Ids, Ids], TokenScores]]:
    """Yields pairs of context and continuation, with the scores of the latter."""
    for contexts, state in contexts_with_states(scorer, list(shared)):
        rows = [
            (n, ScoredRow((context[-1], *continuation[:-1]), continuation))
            for n, context in enumerate(contexts)
            for continuation in shared[context]
        ]
        rows.sort(key=lambda numbered: len(numbered[1].tokens), reverse=True)
        for batch in _batches(rows, scorer.batch_size):
            own = None if state is None else rows_of(state, [n for n, _ in batch])
            scores, _ = scorer.score_batch([row for _, row in batch], own)
            for (n, row), found in zip(batch, scores):
                yield (contexts[n], tuple(row.targets)), found


def contexts_with_states(
    scorer: Scorer, contexts: Sequence[Ids]
) -> Iterator[tuple[list[Ids], ModelState | None]]:
    """Yields contexts, a batch at a time, and the states before the last token of each.

    That token is to be read with what continues the context: behind it the first token of a
    continuation is predicted. State None: these contexts have one token, with nothing before it.
    """
    order = sorted(contexts, key=len, reverse=True)
    long = [context for context in order if len(context) > 1]
    for batch in _batches(long, scorer.batch_size):
        yield batch, _states_after(scorer, [context[:-1] for context in batch])
    for batch in _batches(order[len(long) :], scorer.batch_size):
        yield batch, None


def _states_after(scorer: Scorer, rows: Sequence[Ids]) -> ModelState:
    """Returns the states behind rows of at least one token, longest first, as one batch."""
    ended: list[ModelState] = []
    left = len(rows)
    for chunk in scorer.read(rows, None, stop_at_ends=True):
        end = chunk.start + chunk.features.shape[1]
        going_on = sum(len(row) > end for row in rows[:left])
        if going_on < left:
            ended.append(rows_of(chunk.state, range(going_on, left)))
            left = going_on
    return _stacked(ended[::-1])


def encode_pair(
    tokenizer: Tokenizer, context: str, continuation: str
) -> tuple[list[int], list[int]]:
    """Returns the tokens of a context and those of what continues it.

    White space at the end of the context belongs to the continuation. Both texts are encoded as
    one; the continuation begins with the first token that reaches beyond the context. Where such
    a token holds the whole context, the first list is empty.
    """
    kept = context.rstrip()
    context, continuation = kept, context[len(kept) :] + continuation
    whole, before = tokenizer.encode(context + continuation), tokenizer.encode(context)
    if whole[: len(before)] == before:
        return before, whole[len(before) :]
    # A token spans the border, so that cutting behind as many tokens as the context alone has
    # would cut elsewhere in the text.
    content = utf8(context)
    for size in range(min(len(whole), len(before) + _NEAR), 0, -1):
        if content.startswith(tokenizer.decode_bytes(whole[:size])):
            return whole[:size], whole[size:]
    return [], whole


def is_cut_plainly(tokenizer: Tokenizer, context: str, continuation: str) -> bool:
    """Tells whether the tokens of the context alone are also the first ones of both texts."""
    kept = context.rstrip()
    before = tokenizer.encode(kept)
    return tokenizer.encode(context + continuation)[: len(before)] == before


def _summed(scores: TokenScores) -> ContinuationScore:
    return ContinuationScore(float(scores.log_probabilities.sum()), bool(scores.are_greedy.all()))


def _batches(items: list[Item], size: int) -> Iterator[list[Item]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def _stacked(states: Sequence[ModelState]) -> ModelState:
    """Returns the rows of several states as one batch."""
    layers = []
    for parts in zip(*states):
        wkv = [part.wkv for part in parts]
        layers.append(
            LayerState(
                torch.cat([part.att_shift for part in parts]),
                tuple(map(torch.cat, zip(*wkv))) if isinstance(wkv[0], tuple) else torch.cat(wkv),
                torch.cat([part.ffn_shift for part in parts]),
            )
        )
    return tuple(layers)
