"""The order in which a training process reads samples: every sample has one global number n.

n counts the samples of the whole run from 1. Where sample n lies in the data depends on n alone, so
the content of a global batch depends neither on the number of processes nor on the split into micro
batches, nor on where a run was interrupted. The formula is RWKV-LM's (`slot` below); with a global
batch that divides 40320 the order is RWKV-LM's, sample for sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch.utils.data import Sampler


def golden_factor(prime: int) -> int:
    """Returns trunc(prime * (sqrt(5) - 1) / 2), in binary64 as RWKV-LM computes it."""
    return int(prime * ((math.sqrt(5) - 1) / 2))


def slot(n: int, prime: int) -> int:
    """Returns the slot of sample n in [0, prime): (golden_factor * n^3) mod prime, exactly.

    Any `prime` consecutive n visit every slot once. Source: RWKV-LM v5 and v7, `dataset.py`.
    """
    # In Python's integers: the product goes far beyond 64 bits.
    return golden_factor(prime) * n**3 % prime


def number_of_slot(place: int, prime: int) -> int:
    """Returns the n in [1, prime] whose slot is `place`: the inverse of `slot`."""
    cube = place * pow(golden_factor(prime), -1, prime)
    # A prime that is 2 mod 3 has one cube root of everything: 3 (2 p - 1) / 3 is 1 mod (p - 1).
    return pow(cube, (2 * prime - 1) // 3, prime) or prime


def sample_offset(n: int, prime: int, ctx_len: int, shift: int = 0) -> int:
    """Returns the first token's number of sample n, which is that token and ctx_len more."""
    return slot(n, prime) * ctx_len + shift


class SampleNumbers(Sampler[int]):
    """The global sample numbers one process reads, in order; holds no list, whatever the length.

    Iterating yields, for optimizer steps S = first_step ... first_step + steps - 1, for every
    micro step m and position j in the micro batch,

        n = 1 + ((S * accumulate + m) * micro_bsz + j) * world_size + rank

    so a loader with batch_size = micro_bsz returns one micro batch at a time. `first_step` and
    `steps` may be changed between two iterations (loader workers only ever see the numbers).
    """

    def __init__(
        self,
        first_step: int,
        steps: int,
        micro_bsz: int,
        accumulate: int,
        rank: int,
        world_size: int,
    ) -> None:
        assert first_step >= 0, f"first_step {first_step} is negative"
        assert steps >= 0, f"steps {steps} is negative"
        assert min(micro_bsz, accumulate, world_size) >= 1, (micro_bsz, accumulate, world_size)
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        self.first_step = first_step
        self.steps = steps
        self.micro_bsz = micro_bsz
        self.accumulate = accumulate
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[int]:
        for step in range(self.first_step, self.first_step + self.steps):
            yield from self.of_step(step)

    def of_step(self, step: int) -> Iterator[int]:
        """Yields the numbers of optimizer step `step`."""
        # Rank by rank within a position: a global batch is the same for any number of ranks.
        first = step * self.per_step
        for i in range(first, first + self.per_step):
            yield 1 + i * self.world_size + self.rank

    @property
    def per_step(self) -> int:
        """Samples of this process per optimizer step."""
        return self.accumulate * self.micro_bsz

    def __len__(self) -> int:
        return self.steps * self.per_step
