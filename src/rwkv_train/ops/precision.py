"""Precision and range as all operators have them."""

from __future__ import annotations

import torch
from torch import Tensor

# RWKV-5 and 6: exp(-exp(7)) is 0 even in fp64, and so is its gradient. Without the limit exp(w)
# overflows for w > 88 and the gradient becomes infinity times zero.
LARGEST_LOG_RATE = 7.0


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of state, decay and sums: fp64 for fp64 inputs, fp32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def log_decay(w: Tensor, largest: float = LARGEST_LOG_RATE) -> Tensor:
    """Returns lambda = -exp(w), the logarithm of the decay exp(-exp(w)); finite for every w.

    largest: w counts up to this.
    """
    return -torch.exp(w.clamp(max=largest))


def decay_input(w: Tensor, base: Tensor | None, w_gradient: Tensor | None) -> Tensor:
    """Returns w + base, and lets the gradient of w flow to `w_gradient` where that is given.

    w: [B, T, H, N].  base: [H, N].  w_gradient: zeros of w's shape in any dtype, to which the
    gradient is rounded.
    """
    if w_gradient is not None:
        w = w.detach() + w_gradient.to(w.dtype)
    return w if base is None else w + base
