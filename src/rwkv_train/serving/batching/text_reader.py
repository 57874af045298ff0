"""A text that is read for a job, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from rwkv_train.inference.engine.sequence_state import SequenceState

Pooling = Literal["mean", "last"]


class TextReader:
    """A text that is read, piece by piece.

    state, position: behind what was read.  stops: places where a piece has to end.
    """

    def __init__(self, tokens: Sequence[int], state: SequenceState, position: int = 0) -> None:
        self.tokens = tokens
        self.state = state
        self.position = position
        self.stops: set[int] = set()
        self._last: Tensor | None = None
        self._sum: Tensor | None = None

    @property
    def left(self) -> int:
        """Tokens that are still to be read."""
        return len(self.tokens) - self.position

    def piece(self, most: int) -> Sequence[int]:
        """Returns the next tokens, at most so many."""
        end = min(len(self.tokens), self.position + most)
        end = min([end, *(stop for stop in self.stops if stop > self.position)])
        return self.tokens[self.position : end]

    def see(self, features: Tensor, *, pooled: bool) -> None:
        """Takes the features [T, C] of tokens that were read.  pooled: all of them are wanted."""
        self._last = features[-1].clone()
        if pooled:
            total = features.float().sum(0)
            self._sum = total if self._sum is None else self._sum + total

    def last_features(self) -> Tensor:
        """Returns the features [C] of the last token that was read."""
        assert self._last is not None, "something was read"
        return self._last

    def vector(self, pooling: Pooling) -> Tensor:
        """Returns the text's vector [C] in fp32, of length 1."""
        assert self._sum is not None, "all was read and pooled"
        pooled = self._sum / len(self.tokens) if pooling == "mean" else self.last_features().float()
        return torch.nn.functional.normalize(pooled, dim=-1).cpu()
