"""What the operators agree on about precision and range."""

from __future__ import annotations

import torch
from torch import Tensor

# exp(-exp(7)) is 0 even in fp64, and so is its gradient. Without the limit exp(w) overflows for
# w > 88 and the gradient becomes infinity times zero.
LARGEST_LOG_RATE = 7.0


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of state, decay and sums: fp64 for fp64 inputs, fp32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def log_decay(w: Tensor) -> Tensor:
    """lambda = -exp(w), the logarithm of the decay exp(-exp(w)); finite for every w (RWKV-5, 6)."""
    return -torch.exp(w.clamp(max=LARGEST_LOG_RATE))
