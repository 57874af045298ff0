"""The processes that share the tokens of a row, as a model sees them, and what they told it.

A model that reads the whole row by itself has None in this place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

Told = TypeVar("Told")


class Awaited(Generic[Told]):
    """A result on its way from other ranks: begun where it can be, waited for where it is needed.

    finish: waits for it. Called once, where `result` is first asked for.
    """

    def __init__(self, finish: Callable[[], Told]) -> None:
        self._finish: Callable[[], Told] | None = finish
        self._told: list[Told] = []

    def result(self) -> Told:
        """Returns what came, the same every time."""
        if self._finish is not None:
            self._told.append(self._finish())
            # With it go the messages that it read.
            self._finish = None
        return self._told[0]


class TokenRanks(Protocol):
    """The ranks that hold consecutive pieces of a row, rank 0 the first one.

    Every method is collective: all ranks call it, in one order, with tensors of one shape. A call
    that depended on the data (a reset, a mask, a state of zeros) would leave the others waiting.
    A call begins an exchange, and is not waited for before `result`; what was passed must stay as
    it is until then.
    """

    @property
    def rank(self) -> int:
        """The place of this process's piece, from 0."""

    @property
    def size(self) -> int:
        """The number of pieces."""

    def gather(self, own: Tensor) -> Awaited[list[Tensor]]:
        """Returns what every rank passes, by rank."""

    def pass_on(self, own: Tensor, distance: int) -> Awaited[Tensor | None]:
        """Hands `own` to the rank `distance` after this one, and returns what it is handed.

        distance: below 0 to earlier ranks. None where there is no rank to hand it on.
        """

    def of_last(self, own: Tensor) -> Awaited[Tensor]:
        """Returns what the last rank passes."""

    def sum(self, own: Tensor) -> Awaited[Tensor]:
        """Returns the sum of what all ranks pass."""

    def once(self, tell: Callable[[], Told]) -> Told:
        """Returns what `tell` does, which the ranks tell one another.

        A forward pass that is made again gets what it got the first time.
        """


class _Repeated:
    """Ranks whose answers to `once` are kept, for forward passes that activation checkpointing
    makes again: nothing is sent twice, and nothing computed for sending."""

    def __init__(self, ranks: TokenRanks, kept: list[Any]) -> None:
        self._ranks = ranks
        self._kept = kept
        self._next = 0
        self.rank, self.size = ranks.rank, ranks.size
        self.gather, self.pass_on = ranks.gather, ranks.pass_on
        self.of_last, self.sum = ranks.of_last, ranks.sum

    def once(self, tell: Callable[[], Told]) -> Told:
        """Returns the answer kept at this place of the pass, the first time that of the ranks."""
        if self._next == len(self._kept):
            self._kept.append(self._ranks.once(tell))
        answer: Told = self._kept[self._next]
        self._next += 1
        return answer


def repeatable(ranks: TokenRanks | None) -> Callable[[], TokenRanks | None]:
    """Returns what gives a forward pass its ranks, as often as it is made.

    The first pass asks `ranks`; every later one finds the answers in the same order. None: None.
    """
    if ranks is None:
        return lambda: None
    kept: list[Any] = []
    return lambda: _Repeated(ranks, kept)
