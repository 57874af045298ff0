"""Reading and writing tokens with a model: any number of sequences, each with a state of its own.

    engine = Engine(model)
    logits, states = engine.prefill([[5, 7, 9], [5, 2]])          # prompts of any lengths
    logits, states = engine.step([3, 8], states)                  # a token for each
    logits, states = engine.step([4], states[1:])                 # the first one has left
    logits, states = engine.step([6, 1], [*states, engine.start()])   # another one joins

No sequence sees the others, nor any padding: rows that have the same number of tokens left are read
together, until the shortest ends. Memory does not grow with the length of a prompt.

What one sequence computes is, up to rounding, the same in every company and in pieces of every
length. It is not the same bit for bit: a matrix product of one row is summed in another order than
one of many. `inference.sampling` says why a text is the same all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from rwkv_train.inference.engine.sequence_state import SequenceState, stack_states
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.initial_state import initial_state
from rwkv_train.models.recorded_step import RecordedStep
from rwkv_train.models.state import ModelState, copy_state

# Tokens read at once, of all sequences together: bounds the memory of a long prompt.
PIECE_TOKENS = 1024


class ReadPiece(NamedTuple):
    """A piece of some prompts, read together.

    members: which prompts, by index.  start: how many tokens of each of them came before.
    features: [members, T, C], the head's input, behind the last norm.
    """

    members: list[int]
    start: int
    features: Tensor


class Engine:
    """A loaded model that reads and writes; without gradients, in the model's own number format.

    model: in evaluation mode.  piece_tokens: tokens read at once, of all sequences together.
    """

    def __init__(self, model: RWKV, *, piece_tokens: int = PIECE_TOKENS) -> None:
        assert piece_tokens > 0, "a piece has at least one token"
        self.model = model
        self.piece_tokens = piece_tokens
        self._step = RecordedStep(model)

    @property
    def device(self) -> torch.device:
        """The device of the model, its states and its logits."""
        return self.model.emb.weight.device

    @property
    def vocab_size(self) -> int:
        """The number of the head's rows."""
        return self.model.config.vocab_size

    def start(self) -> SequenceState:
        """Returns the state of a sequence that has read nothing: the trained one if there is."""
        return self._start

    def prefill(
        self, prompts: Sequence[Sequence[int]], states: Sequence[SequenceState] | None = None
    ) -> tuple[Tensor, list[SequenceState]]:
        """Returns the logits [n, V] behind the last token of every prompt, and the states there.

        prompts: token ids, at least one each, of any lengths.
        states: what each goes on from; None: all start anew.
        """
        last: dict[int, Tensor] = {}

        def keep_last(piece: ReadPiece) -> None:
            rows = piece.features[:, -1].clone()
            last.update(zip(piece.members, rows))

        after = self.read(prompts, states, keep_last)
        return self.logits(torch.stack([last[member] for member in range(len(prompts))])), after

    def step(
        self, tokens: Sequence[int], states: Sequence[SequenceState]
    ) -> tuple[Tensor, list[SequenceState]]:
        """Returns the logits [n, V] behind one more token of every sequence, and the states there.

        tokens: one of each.  states: of any origin; members may come and go between calls.
        """
        assert len(tokens) == len(states), "one token for every state"
        ids = torch.tensor(tokens, dtype=torch.long, device=self.device)[:, None]
        features, block = self._call(ids, stack_states(states))
        after = [s.after([t], block, row) for row, (t, s) in enumerate(zip(tokens, states))]
        return self.logits(features[:, -1]), after

    def read(
        self,
        prompts: Sequence[Sequence[int]],
        states: Sequence[SequenceState] | None,
        receive: Callable[[ReadPiece], None],
    ) -> list[SequenceState]:
        """Returns the states behind the prompts, having shown every piece to `receive`.

        Every token's features come to `receive` once, those of a prompt in order. They are gone
        afterwards: who wants some copies them, for a view keeps the whole piece alive.
        prompts, states: as `prefill`.
        """
        now = [self.start()] * len(prompts) if states is None else list(states)
        assert len(now) == len(prompts), "one state for every prompt"
        assert prompts and all(len(prompt) for prompt in prompts), "a prompt has a token at least"
        start = 0
        active = list(range(len(prompts)))
        while active:
            shortest = min(len(prompts[member]) for member in active) - start
            length = min(shortest, max(1, self.piece_tokens // len(active)))
            pieces = [prompts[member][start : start + length] for member in active]
            ids = torch.tensor([list(piece) for piece in pieces], device=self.device)
            features, block = self._call(ids, stack_states([now[member] for member in active]))
            for row, (member, piece) in enumerate(zip(active, pieces)):
                now[member] = now[member].after(piece, block, row)
            receive(ReadPiece(active, start, features))
            start += length
            going_on = [member for member in active if len(prompts[member]) > start]
            for member in set(active) - set(going_on) if going_on else ():
                # Cut out: else every block would stay for the sake of one row.
                now[member] = now[member].copied()
            active = going_on
        return now

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """Returns the logits [..., V] of features [..., C]."""
        if features.dim() == 2 and self._step.serves(len(features)):
            return self._step.logits(features)
        found: Tensor = self.model.head(features)
        return found

    @torch.no_grad()
    def _call(self, ids: Tensor, block: ModelState) -> tuple[Tensor, ModelState]:
        """Returns the features [B, T, C] of ids [B, T], and the states behind them."""
        if ids.shape[1] == 1 and self._step.serves(len(ids)):
            return self._step.features(ids, block)
        features, after = self.model.features(ids, block)
        # A state may be a view of the piece's activations, and would keep them alive.
        return features, copy_state(after) if ids.shape[1] > 1 else after

    @cached_property
    def _start(self) -> SequenceState:
        return SequenceState(initial_state(self.model))
