"""Works out the figures of a validation from sums of losses: pure arithmetic.

A bucket holds the targets at which the model had seen as many tokens of the document before the
current one as the bucket's name says: 0-1 (none), 1-2, 2-4, 4-8 and so on; its end is exclusive.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Bucket:
    """Targets by position: `first` <= position < `end`; tokens: their weight; loss: their mean."""

    first: int
    end: int
    tokens: float
    loss: float

    @property
    def name(self) -> str:
        """Such as 64-128."""
        return f"{self.first}-{self.end}"


@dataclass(frozen=True)
class ValidationRecord:
    """The figures of one validation.

    step: the last optimizer step before it, from 0. loss: nats per token, the mean over all
    held-out targets (weighted by their loss mask if they have one); tokens: their weight.
    bits_per_byte: of text; None: not known. by_source: loss of each source, empty if there is one.
    is_best: lower than every validation of this run before.
    """

    step: int
    loss: float
    tokens: float
    bits_per_byte: float | None
    by_position: tuple[Bucket, ...]
    by_source: Mapping[str, float] = field(default_factory=dict)
    is_best: bool = False

    @property
    def perplexity(self) -> float:
        """exp(loss); of 700 nats and more, that of 700."""
        return math.exp(min(self.loss, 700.0))

    def values(self) -> dict[str, object]:
        """Returns the record of metrics.jsonl, without what is not known."""
        found: dict[str, object] = {
            "step": self.step,
            "val_loss": self.loss,
            "val_perplexity": self.perplexity,
            "val_bits_per_byte": self.bits_per_byte,
            "val_tokens": self.tokens,
            "val_loss_by_position": {bucket.name: bucket.loss for bucket in self.by_position},
            "val_loss_by_source": dict(self.by_source) or None,
        }
        return {name: value for name, value in found.items() if value is not None}


def bucket_count(length: int) -> int:
    """Returns the number of buckets for positions 0 ... length - 1."""
    return (length - 1).bit_length() + 1


def make_record(
    step: int,
    sums: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64],
    length: int,
    sources: Mapping[str, slice],
    bytes_per_token: Sequence[float | None],
) -> ValidationRecord:
    """Works out a validation from sums over its targets.

    sums, weights: [samples, buckets], the weighted losses and the weights of their targets.

    length: of a sample. sources: name -> its samples; bytes_per_token: of each source.
    """
    by_bucket, size = sums.sum(0), weights.sum(0)
    total, tokens = float(sums.sum()), float(weights.sum())
    # The last bucket may be cut short by the end of the samples.
    ends = [min(1 << i, length) for i in range(len(size))]
    firsts = [0, *ends[:-1]]
    losses = {
        name: float(sums[part].sum() / weights[part].sum())
        for name, part in sources.items()
        if weights[part].sum() > 0
    }
    return ValidationRecord(
        step=step,
        loss=total / tokens if tokens else 0.0,
        tokens=tokens,
        bits_per_byte=_bits_per_byte(total, weights, sources, bytes_per_token),
        by_position=tuple(
            Bucket(first, end, float(n), float(loss / n))
            for first, end, n, loss in zip(firsts, ends, size, by_bucket)
            if n > 0
        ),
        by_source=losses if len(sources) > 1 else {},
    )


def _bits_per_byte(
    nats: float,
    weights: npt.NDArray[np.float64],
    sources: Mapping[str, slice],
    bytes_per_token: Sequence[float | None],
) -> float | None:
    # A mean over some of the sources would be taken for that of all.
    if any(ratio is None for ratio in bytes_per_token):
        return None
    size = sum(
        float(weights[part].sum()) * (ratio or 0.0)
        for part, ratio in zip(sources.values(), bytes_per_token)
    )
    return nats / math.log(2) / size if size > 0 else None
