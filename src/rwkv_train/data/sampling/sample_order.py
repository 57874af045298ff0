"""Places sample n in the data: by RWKV-LM's permutation of slots, or at a random start.

Both are pure functions of n and of the values given here, so that every process and every resumed
run finds the same sample under the same number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rwkv_train.data.sampling.held_out import HeldOut
from rwkv_train.data.sampling.sampler import slot
from rwkv_train.errors import DataError


@dataclass(frozen=True)
class Permutation:
    """RWKV-LM's slot order (`sampler.slot`), `shift` tokens later.

    held_out: slots that are never trained on; `prime` then permutes the others.
    """

    prime: int
    shift: int = 0
    held_out: HeldOut | None = None

    def check(self, tokens: int, ctx_len: int) -> None:
        """Raises DataError when samples would reach beyond the data."""
        if self.held_out is not None:
            assert self.prime <= self.held_out.rest and self.shift == 0, self
        largest = tokens - 1 - self.prime * ctx_len
        if not 0 <= self.shift <= largest:
            raise DataError(
                f"samples would lie outside the data: with {tokens} tokens, --ctx_len {ctx_len} "
                f"and --magic_prime {self.prime}, --sample_offset can be 0 to {largest}, not "
                f"{self.shift}"
                if largest >= 0
                else f"--magic_prime {self.prime} with --ctx_len {ctx_len} reads token "
                f"{self.prime * ctx_len}, but the data ends with token {tokens - 1}"
            )

    def samples_per_pass(self, tokens: int, ctx_len: int) -> int:
        """Returns how many samples read every permuted slot once."""
        return self.prime

    def offset(self, n: int, tokens: int, ctx_len: int) -> int:
        """Returns the number of the first token of sample n."""
        number = slot(n, self.prime)
        if self.held_out is not None:
            number = self.held_out.training_slot(number)
        return number * ctx_len + self.shift


@dataclass(frozen=True)
class RandomStarts:
    """A uniform start in [0, tokens - ctx_len), a pure function of (seed, n)."""

    seed: int = 0

    def check(self, tokens: int, ctx_len: int) -> None:
        """Accepts any data that holds one sample: random starts always lie inside."""

    def samples_per_pass(self, tokens: int, ctx_len: int) -> int:
        """Returns how many samples hold as many tokens as the data."""
        return (tokens - 1) // ctx_len

    def offset(self, n: int, tokens: int, ctx_len: int) -> int:
        """Returns the number of the first token of sample n."""
        return _random_below(tokens - ctx_len, self.seed, n)


SampleOrder = Permutation | RandomStarts


def _random_below(limit: int, seed: int, n: int) -> int:
    """Draws a uniform integer in [0, limit) that depends on (seed, n) alone.

    The bias of the multiplication is below limit / 2^64.
    """
    # The raw Philox stream, because NumPy keeps that one the same across releases.
    # n in the second word: the first one is what a stream counts up, so that none meets another.
    bits = np.random.Philox(key=seed % 2**64, counter=[0, n, 0, 0]).random_raw()
    return int(bits) * limit >> 64
