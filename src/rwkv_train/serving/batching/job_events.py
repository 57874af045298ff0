"""Reports of the batching thread about its jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from torch import Tensor

from rwkv_train.inference.writing import EndReason


class TokenChance(NamedTuple):
    """A token that was drawn, its log-probability by the model, and the likeliest instead.

    likeliest: (token, log-probability), the likeliest first.
    """

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]


class Began(NamedTuple):
    """A prompt is read.  cached: of its tokens, those whose state was known."""

    cached: int


class Wrote(NamedTuple):
    """More of a text.  chances: of the tokens that have become certain with it."""

    choice: int
    text: str
    chances: tuple[TokenChance, ...] = ()


class Ended(NamedTuple):
    """The end of a text.  tokens: written in all; stop: the stop text that ended it."""

    choice: int
    reason: EndReason
    tokens: int
    stop: str | None = None


class Pooled(NamedTuple):
    """The vector [C] of a text."""

    text: int
    vector: Tensor


class Failed(NamedTuple):
    """The end of a job that could not be done, and why."""

    reason: str


JobEvent: TypeAlias = Began | Wrote | Ended | Pooled | Failed
Receive: TypeAlias = Callable[[JobEvent], None]
