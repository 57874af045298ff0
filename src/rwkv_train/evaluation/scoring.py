"""Log-probabilities of given tokens: the one place where an evaluation runs the model.

Rows of tokens are read in chunks, each from the state that the one before left, so that memory is
that of one chunk whatever the length. Rows of similar length are read together, and the shorter
ones filled up behind their end, which no token before it sees. So a row is scored as it would be
alone, up to the rounding of a matrix product with other rows.

Logits exist for a slice of the scored tokens only, and are fp32 before their softmax: in bf16 the
loss itself would be rounded to 2^-8 of its value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rwkv_train.models.backbone import RWKV
from rwkv_train.models.state import ModelState, copy_state, map_state

# Bytes of the logits that exist at a time, in fp32.
LOGITS_BYTES = 64 * 2**20
BATCH_SIZE = 16
CHUNK_LEN = 1024
Tokens = Sequence[int]


class ScoredRow(NamedTuple):
    """Tokens to read, and those that are to follow the last ones of them.

    tokens: [T], at least one.  targets: [n], n <= T: targets[i] follows tokens[T - n + i].
    """

    tokens: Tokens
    targets: Tokens


class TokenScores(NamedTuple):
    """The scores of a row's targets.

    log_probabilities: [n] fp64, natural logarithms.  are_greedy: [n], whether each one is the
    likeliest token of all, the first on a tie.
    """

    log_probabilities: npt.NDArray[np.float64]
    are_greedy: npt.NDArray[np.bool_]


class ReadChunk(NamedTuple):
    """A chunk of the rows that reach it, which are the first ones.

    start: tokens of every row before.  features: [rows, T, C].  state: behind the chunk; right for
    the rows that do not end within it.
    """

    start: int
    features: Tensor
    state: ModelState


class Scorer:
    """A model that tells how likely given tokens are to it.

    batch_size: most rows read together.  chunk_len: tokens of each that are read at a time.
    pulse: called before every pass of the model; what it raises ends the evaluation.
    """

    def __init__(
        self,
        model: RWKV,
        *,
        batch_size: int = BATCH_SIZE,
        chunk_len: int = CHUNK_LEN,
        pulse: Callable[[], None] = lambda: None,
    ) -> None:
        self.model = model
        self.batch_size = batch_size
        self.chunk_len = chunk_len
        self.pulse = pulse

    def score(self, rows: Sequence[ScoredRow]) -> list[TokenScores]:
        """Returns the scores of every row, in the order given; each starts from the initial state.

        The rows may have any lengths: neighbours in length are read together.
        """
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].tokens), reverse=True)
        found: dict[int, TokenScores] = {}
        for first in range(0, len(order), self.batch_size):
            batch = order[first : first + self.batch_size]
            scores, _ = self.score_batch([rows[i] for i in batch])
            found.update(zip(batch, scores))
        return [found[i] for i in range(len(rows))]

    def score_batch(
        self, rows: Sequence[ScoredRow], state: ModelState | None = None
    ) -> tuple[list[TokenScores], ModelState]:
        """Returns the scores of rows that are read together, longest first, and the state.

        state: from which they go on, None: from the initial one.  The state that is returned is
        that of the rows that are as long as the first.
        """
        # Made at once: what every chunk allocated to keep would scatter over the heap.
        found = [
            TokenScores(np.empty(len(row.targets)), np.empty(len(row.targets), np.bool_))
            for row in rows
        ]
        for chunk in self.read([row.tokens for row in rows], state):
            state = chunk.state
            spans = [_span(row, n, chunk) for n, row in enumerate(rows[: len(chunk.features)])]
            flat = [t for row, (_, own) in zip(rows, spans) for t in row.targets[own]]
            if not flat:
                continue
            scores, at = self._of_targets(torch.cat([part for part, _ in spans]), flat), 0
            for row_scores, (_, own) in zip(found, spans):
                part = slice(at, at + own.stop - own.start)
                row_scores.log_probabilities[own] = scores.log_probabilities[part]
                row_scores.are_greedy[own] = scores.are_greedy[part]
                at = part.stop
        assert state is not None, "there is a row, and it has a token"
        return found, state

    def read(
        self, rows: Sequence[Tokens], state: ModelState | None, *, stop_at_ends: bool = False
    ) -> Iterator[ReadChunk]:
        """Yields the chunks of rows of tokens, longest first.

        stop_at_ends: lets every row end at the end of a chunk, so that its state is in that one.
        """
        length, device = len(rows[0]), self.model.emb.weight.device
        cuts = {*range(0, length, self.chunk_len), length}
        if stop_at_ends:
            cuts |= {len(row) for row in rows}
        edges = sorted(cuts)
        for start, end in pairwise(edges):
            self.pulse()
            reaching = sum(len(row) > start for row in rows)
            if state is not None and len(state[0].att_shift) > reaching:
                state = rows_of(state, range(reaching))
            tokens = torch.zeros(reaching, end - start, dtype=torch.long)
            for into, row in zip(tokens, rows):
                part = torch.as_tensor(row[start:end])
                into[: len(part)] = part
            with torch.no_grad():
                features, after = self.model.features(tokens.to(device), state)
                # A state may be a view of the chunk's activations, and would keep them alive.
                state = copy_state(after)
            yield ReadChunk(start, features, state)

    @torch.no_grad()
    def _of_targets(self, features: Tensor, targets: Sequence[int]) -> TokenScores:
        """Returns the scores of targets [n] behind features [n, C]."""
        step = max(1, LOGITS_BYTES // (4 * self.model.config.vocab_size))
        ids = torch.tensor(targets, device=features.device)
        values, greedy = [], []
        for first in range(0, len(ids), step):
            part = slice(first, first + step)
            logits = self.model.head(features[None, part])[0]
            logits = logits if logits.dtype == torch.float64 else logits.float()
            own = logits.gather(1, ids[part, None])[:, 0]
            values.append((own - logits.logsumexp(1)).double().cpu())
            greedy.append((logits.argmax(1) == ids[part]).cpu())
        return TokenScores(torch.cat(values).numpy(), torch.cat(greedy).numpy())


def rows_of(state: ModelState, rows: Sequence[int]) -> ModelState:
    """Returns a state of some rows of a batch, in that order; a row may come several times."""
    index = torch.tensor(list(rows), device=state[0].att_shift.device)
    return map_state(lambda tensor: tensor.index_select(0, index), state)


def _span(row: ScoredRow, number: int, chunk: ReadChunk) -> tuple[Tensor, slice]:
    """Returns a row's features [n, C] in a chunk that targets follow, and which targets."""
    # Tokens before the one that the first target follows.
    first = len(row.tokens) - len(row.targets)
    start = max(chunk.start, first)
    end = max(start, min(chunk.start + chunk.features.shape[1], len(row.tokens)))
    inside = slice(start - chunk.start, end - chunk.start)
    return chunk.features[number, inside], slice(start - first, end - first)
