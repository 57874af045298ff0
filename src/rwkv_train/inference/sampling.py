"""Choosing the next token from logits.

A draw gives every token of the vocabulary a random number of its own and takes the token whose
probability, divided by it, is largest. The numbers come from the sequence's own generator, the same
ones for the same seed, sequence and place, whatever the logits are. So two ways of computing one
text, whose logits differ by rounding, choose the same token unless the two best tokens lie within
that rounding of each other: in fp32 about once in a million tokens. In fp32 a text is therefore the
same whether its prompt was read at once, in pieces or token by token, alone or in a batch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from rwkv_train.errors import ConfigError

# Of the likeliest tokens, as many as are put in order at first.
_LOOKED_AT = 256
# Beyond it a logit less a penalty, or divided by a temperature, could leave fp32's range; at such
# temperatures nothing but the likeliest token has a chance.
_MOST_PENALTY = 100.0
_COLDEST = 1e-6


@dataclass(frozen=True)
class SamplingOptions:
    """The rule by which the next token is chosen.

    temperature: 0 takes the likeliest token. top_k: 0 is off. top_p: 1 is off.
    presence_penalty is subtracted from the logit of every token generated so far,
    frequency_penalty once for every time it was; the counts fade by penalty_decay a token.
    order: which comes first, the temperature or the choice of the likeliest by top_k and top_p.
    The programs around ChatRWKV choose first, by the model's own probabilities; at temperature 1
    there is no difference.
    """

    temperature: float = 1.0
    top_p: float = 0.7
    top_k: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_decay: float = 0.996
    order: Literal["temperature", "top_p"] = "temperature"

    def __post_init__(self) -> None:
        for name, lowest, highest in (
            ("temperature", 0.0, 100.0),
            ("top_p", 0.0, 1.0),
            ("top_k", 0, 10**9),
            ("presence_penalty", -_MOST_PENALTY, _MOST_PENALTY),
            ("frequency_penalty", -_MOST_PENALTY, _MOST_PENALTY),
            ("penalty_decay", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if not lowest <= value <= highest:
                raise ConfigError(f"--{name} {value} must be between {lowest:g} and {highest:g}")


@dataclass
class Sampler:
    """Draws tokens one after another; remembers what it drew for the penalties."""

    options: SamplingOptions
    generator: torch.Generator
    _counts: dict[int, float] = field(default_factory=dict)

    def draw(self, logits: Tensor) -> int:
        """Returns the next token for logits [V]; raises ConfigError when they are no numbers."""
        options = self.options
        # The generator is the CPU's, so that a seed gives the same draws on every device.
        # A copy, because the penalties are subtracted in place and the logits are the caller's.
        logits = logits.detach().to("cpu", torch.float32, copy=True)
        if not bool(logits.isfinite().all()):
            raise ConfigError(
                "the model's output holds NaN or infinity: its numbers have become too large; give "
                "--precision fp32 or bf16, or another checkpoint"
            )
        if self._counts and (options.presence_penalty or options.frequency_penalty):
            penalties = [
                options.presence_penalty + count * options.frequency_penalty
                for count in self._counts.values()
            ]
            logits[list(self._counts)] -= torch.tensor(penalties)
        token = self._choose(logits)
        # Faded before the new token is counted, so that it weighs fully next time.
        for known in self._counts:
            self._counts[known] *= options.penalty_decay
        self._counts[token] = self._counts.get(token, 0.0) + 1.0
        return token

    def _choose(self, logits: Tensor) -> int:
        options = self.options
        if options.temperature < _COLDEST:
            return int(logits.argmax())
        if options.order == "temperature":
            logits = logits / options.temperature
        logits = keep_likely(logits, top_k=options.top_k, top_p=options.top_p)
        if options.order == "top_p":
            logits = logits / options.temperature
        return int(torch.multinomial(logits.softmax(-1), 1, generator=self.generator))


def seed_or_new(given: int | None) -> int:
    """Returns the seed that was given, else a new one; raises ConfigError for one out of range."""
    if given is None:
        # Of 32 bits: every reader of JSON knows such a number. A new generator of torch has the
        # same fixed seed every time.
        return torch.Generator().seed() % (1 << 32)
    if not 0 <= given < 1 << 63:
        raise ConfigError(f"--seed {given} must be between 0 and {(1 << 63) - 1}")
    return given


def sequence_generator(seed: int, index: int = 0) -> torch.Generator:
    """Returns the random numbers of one sequence among those of a seed.

    The first sequence has those that torch gives for the seed. They do not depend on how many other
    sequences there are, nor on their lengths.
    """
    if index:
        seed = int.from_bytes(hashlib.sha256(f"{seed} {index}".encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(seed)


def keep_likely(logits: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """Returns logits [V] with -inf for the unlikely; the likeliest token always stays.

    Unlikely is what lies outside the top_k largest, or outside the smallest set of likeliest tokens
    whose probabilities reach top_p.
    """
    most = min(top_k, len(logits)) if top_k > 0 else len(logits)
    if top_p >= 1 and most == len(logits):
        return logits
    total = logits.logsumexp(-1)
    # Few tokens hold nearly all the probability: sorting all would take longer than the model.
    size = min(most, _LOOKED_AT) if top_p < 1 else most
    while True:
        ordered, order = logits.topk(size)
        keep = torch.ones_like(ordered, dtype=torch.bool)
        if top_p < 1:
            probability = (ordered - total).exp()
            # what comes before a token has not yet reached top_p
            keep = probability.cumsum(-1) - probability < top_p
        if size == most or not keep[-1]:
            break
        size = min(most, 16 * size)
    # A top_p of 0 keeps nothing by itself.
    keep[0] = True
    result = torch.full_like(logits, -torch.inf)
    result[order[keep]] = ordered[keep]
    return result
