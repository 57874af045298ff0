"""Numbers that are the same on every machine, for inputs whose results are stored.

torch's generators give others on other processors. A bit generator of NumPy is a fixed function by
its documentation, and what is done with its bits here is exact in fp64: no logarithm, no cosine.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# Uniform numbers added up to one that is normal but for its tails: their variance is 1 / 12 each.
_ADDED = 12
_BITS = 20


class FixedNumbers:
    """FixedNumbers tensors in fp64 (int64), a stream of numbers for every seed."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def uniform(self, *shape: int) -> Tensor:
        """Returns numbers in [0, 1), multiples of 2^-20."""
        raw = self._bits.random_raw(math.prod(shape))
        bits = np.atleast_1d(raw) >> np.uint64(64 - _BITS)
        return torch.from_numpy(bits.astype(np.float64)).mul_(2.0**-_BITS).view(shape)

    def normal(self, *shape: int) -> Tensor:
        """Returns numbers of mean 0 and variance 1, within ±6."""
        return self.uniform(_ADDED, *shape).sum(0) - _ADDED / 2

    def integers(self, limit: int, *shape: int) -> Tensor:
        """Returns int64 numbers in 0 .. limit - 1; limit: at most 2^20."""
        return (self.uniform(*shape) * limit).long()
