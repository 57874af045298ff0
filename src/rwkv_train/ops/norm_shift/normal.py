"""The normalised tokens of a call, as the one that mixes them again receives them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Normal(NamedTuple):
    """Tokens h [B, T, C] that a norm has made.

    tokens: h itself, or of the native backend a tensor of that shape without data, which takes the
        gradient of h to the norm: h is computed again from the others.
    stream, statistics: [B, T, C] and [B, T, 2]; None: `tokens` holds h.
    """

    tokens: Tensor
    weight: Tensor
    bias: Tensor
    stream: Tensor | None = None
    statistics: Tensor | None = None
