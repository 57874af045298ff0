"""The way a chat's answers are written, as the command line and /set say."""

from __future__ import annotations

import argparse
from dataclasses import fields

from rwkv_train.errors import ConfigError
from rwkv_train.inference.chat.answer_openings import CALL, THINKING, AnswerOpening, thinking
from rwkv_train.inference.sampling import Sampler, SamplingOptions, seed_or_new, sequence_generator

_KINDS: dict[str, type] = {
    field.name: int if field.name == "top_k" else float
    for field in fields(SamplingOptions)
    if field.name != "order"
}
_LENGTH = "max_tokens"


class ChatSettings:
    """Sampling, length and beginning of answers.

    The sampling is what the user has said, else what suits the way of thinking, else the usual.
    calls: whether answers to the user call functions.
    """

    def __init__(self, a: argparse.Namespace, usual: dict[str, float]) -> None:
        """Takes the values of the command line; raises ConfigError for wrong ones.

        usual: the sampling where nothing else is said.
        """
        self.calls = a.tools is not None
        self.stop: tuple[str, ...] = tuple(a.stop)
        self.max_tokens: int = a.max_tokens
        self._opening = thinking(a.think)
        self._order = a.sampling_order
        self._usual = usual
        self._given = {n: getattr(a, n) for n in _KINDS if getattr(a, n) is not None}
        self._seed = seed_or_new(a.seed)
        self._answers = 0
        self._sampling()

    def opening(self, role: str) -> AnswerOpening:
        """Returns how an answer to a message of that role begins."""
        # What a function gave is answered in words.
        return CALL if self.calls and role == "user" else self._opening

    def think(self, words: str) -> None:
        """Changes the way of thinking; raises ConfigError for an unknown one."""
        self._opening = thinking(words)

    def next_sampler(self) -> Sampler:
        """Returns what draws the next answer, with random numbers of its own."""
        self._answers += 1
        return Sampler(self._sampling(), sequence_generator(self._seed, self._answers - 1))

    def change(self, name: str, value: str) -> None:
        """Changes one number; raises ConfigError for an unknown one and for a wrong value."""
        known = [*_KINDS, _LENGTH]
        if name not in known:
            raise ConfigError(f"/set {name:.40}: expected one of {', '.join(known)}")
        try:
            number = _KINDS.get(name, int)(value)
        except ValueError:
            raise ConfigError(f"/set {name} {value!r:.40}: expected a number") from None
        if name == _LENGTH:
            if number < 1:
                raise ConfigError(f"/set {_LENGTH} {number} must be at least 1")
            self.max_tokens = number
            return
        before = dict(self._given)
        self._given[name] = number
        try:
            self._sampling()
        except ConfigError as error:
            self._given = before
            raise ConfigError(str(error).replace("--", "/set ", 1)) from None

    def __str__(self) -> str:
        name = next(name for name, way in THINKING.items() if way == self._opening)
        numbers = ", ".join(f"{n} {getattr(self._sampling(), n):g}" for n in _KINDS)
        return f"think {name}; {numbers}, {_LENGTH} {self.max_tokens}"

    def _sampling(self) -> SamplingOptions:
        values = {**self._usual, **dict(self._opening.values), **self._given}
        return SamplingOptions(**values, order=self._order)
