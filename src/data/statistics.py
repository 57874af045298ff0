"""Figures about a binidx pair, taken while streaming over it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from src.data.binidx import Binidx
from src.errors import DataError

_BLOCK_TOKENS = 1 << 20


def unigram_entropy(prefix: str | Path) -> float:
    """Entropy of the token frequencies in nats per token, H = -sum p ln p.

    It is the smallest mean loss of a model that knows the frequencies but no context. Takes memory
    in proportion to the largest id; raises DataError for an unusable pair or a negative id.
    """
    pair = Binidx(prefix)
    counts = np.zeros(0, np.int64)
    for offset in range(0, pair.tokens, _BLOCK_TOKENS):
        ids = pair.get(offset, min(_BLOCK_TOKENS, pair.tokens - offset))
        if ids.min() < 0:
            raise DataError(f"{prefix}.bin holds the negative token id {ids.min()}")
        block = np.bincount(ids, minlength=counts.size)
        block[: counts.size] += counts
        counts = block
    share = counts[counts > 0] / pair.tokens
    return float(-(share * np.log(share)).sum())
