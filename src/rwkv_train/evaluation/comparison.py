"""Two models on the same units: how far apart they are, and how sure that is.

The interval is a paired bootstrap: units (documents, questions) are drawn again with replacement,
the same ones for both models, and the difference of the two figures is computed each time; the
interval holds the middle 95 % of these differences. What makes a unit hard for both models drops
out that way. Few units, below about 20, make the interval too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
SHARE = 0.95
FEW_UNITS = 20


@dataclass(frozen=True)
class PairedDifference:
    """A figure of the second model less that of the first.

    low, high: ends of the 95 % interval; None: a single unit has none.  units: compared.
    """

    difference: float
    low: float | None
    high: float | None
    units: int

    @property
    def is_certain(self) -> bool:
        """True when the interval does not hold 0."""
        return self.low is not None and self.high is not None and self.low * self.high > 0

    def values(self) -> dict[str, Any]:
        """Returns the figures by name, as the JSON result has them."""
        return {
            "difference": self.difference,
            "low": self.low,
            "high": self.high,
            "units": self.units,
            "method": f"paired bootstrap, {RESAMPLES} resamples, {SHARE:.0%}",
        }


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    weights: Sequence[float] | None = None,
    *,
    seed: int = 0,
) -> PairedDifference:
    """Returns sum(second) / sum(weights) - sum(first) / sum(weights), with its interval.

    first, second: [units], nats of documents or 1 and 0 of questions.  weights: [units], bytes of
    the documents; None: 1 each.
    """
    gains = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    sizes = np.ones(len(gains)) if weights is None else np.asarray(weights, np.float64)
    assert len(gains) == len(sizes) > 0, "both models have scored the same units"
    difference = float(gains.sum() / sizes.sum())
    if len(gains) == 1:
        return PairedDifference(difference, None, None, 1)
    generator = np.random.default_rng(seed)
    found = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        drawn = generator.integers(len(gains), size=len(gains))
        found[number] = gains[drawn].sum() / sizes[drawn].sum()
    low, high = np.quantile(found, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return PairedDifference(difference, float(low), float(high), len(gains))
