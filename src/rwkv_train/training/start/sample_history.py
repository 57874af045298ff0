"""Arithmetic of what a run has read: how much of what comes next was read before.

Sample n of a permutation is found from its slot as well as the slot from n, so that no list is
needed, however far a run is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from rwkv_train.data.sampling.mixture import Mixture
from rwkv_train.data.sampling.sample_order import Permutation, SampleOrder
from rwkv_train.data.sampling.sampler import number_of_slot

# Random samples have no inverse: so many are listed at most.
_MOST_LISTED = 20_000


@dataclass(frozen=True)
class PartReading:
    """The samples of one data set: where number n begins, and how long it is."""

    order: SampleOrder
    tokens: int
    ctx_len: int

    def offset(self, n: int) -> int:
        """Returns the number of the first token of the part's sample n."""
        return self.order.offset(n, self.tokens, self.ctx_len)

    def reads_as(self, other: PartReading) -> bool:
        """Tells whether every number stands for the same sample."""
        # A permutation does not depend on what lies behind its slots.
        same = isinstance(self.order, Permutation) or self.tokens == other.tokens
        return same and (self.order, self.ctx_len) == (other.order, other.ctx_len)


@dataclass(frozen=True)
class Reading:
    """The samples of a run: those of one data set, or of several in a mixture."""

    parts: tuple[PartReading, ...]
    mixture: Mixture | None = None

    def counts(self, n: int) -> Sequence[int]:
        """Returns how many of samples 1 ... n come from each part."""
        return [n] if self.mixture is None else self.mixture.counts(n)

    def sample(self, n: int) -> tuple[int, int]:
        """Returns the part of sample n, and its number there."""
        return (0, n) if self.mixture is None else self.mixture.pick(n)


def tokens_read(part: PartReading, count: int) -> Callable[[int, int], int] | None:
    """Returns f: how many tokens of [a, b) are in the part's samples 1 ... count.

    None where that cannot be told: after too many random samples.
    """
    if isinstance(part.order, Permutation):
        order = part.order
        return lambda a, b: sum(
            max(0, min(b, end) - max(a, begin))
            for begin, end, number in _slots(order, part.ctx_len, a, b)
            if number is not None and number <= count
        )
    if count > _MOST_LISTED:
        return None
    merged = _merged(sorted(part.offset(n) for n in range(1, count + 1)), part.ctx_len)
    begins, ends = [begin for begin, _ in merged], [end for _, end in merged]
    before = [0, *accumulate(end - begin for begin, end in merged)]

    def below(place: int) -> int:
        index = bisect_right(begins, place)
        return before[index] - (max(0, ends[index - 1] - place) if index else 0)

    return lambda a, b: below(b) - below(a)


def _slots(
    order: Permutation, ctx_len: int, a: int, b: int
) -> Iterator[tuple[int, int, int | None]]:
    """Yields first token, end and sample number of every slot in [a, b); None: never read."""
    first = max(0, a - order.shift) // ctx_len
    for place in range(first, -(-(b - order.shift) // ctx_len)):
        held_out = order.held_out
        index = place if held_out is None else held_out.index_of(place)
        # Slots behind the prime are left over.
        known = index is not None and index < order.prime
        begin = place * ctx_len + order.shift
        number = number_of_slot(index, order.prime) if known and index is not None else None
        yield begin, begin + ctx_len, number


def _merged(begins: list[int], length: int) -> list[tuple[int, int]]:
    """Returns the union of stretches of one length as (first, end), in order."""
    merged: list[tuple[int, int]] = []
    for begin in begins:
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], begin + length)
        else:
            merged.append((begin, begin + length))
    return merged
