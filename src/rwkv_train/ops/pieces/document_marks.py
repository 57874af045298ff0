"""Which tokens of a piece do not count because a document starts in it."""

from __future__ import annotations

from torch import Tensor


def without_overwritten(v: Tensor, reset: Tensor | None) -> Tensor:
    """Returns v [B, T, H, N] with 0 before the last document start: what does not stay written."""
    if reset is None:
        return v
    return v.masked_fill(precedes_last_start(reset)[..., None, None], 0)


def without_unreading(gy: Tensor, reset: Tensor | None) -> Tensor:
    """Returns gy [B, T, H, N] with 0 from the first document start on.

    Those tokens do not read the initial state.
    """
    if reset is None:
        return gy
    return gy.masked_fill((reset.cumsum(1) > 0)[..., None, None], 0)


def precedes_last_start(reset: Tensor) -> Tensor:
    """Returns bool [B, T], True for tokens before the last document start of their row."""
    starts_from_here = reset.flip(1).cumsum(1).flip(1)
    return starts_from_here > reset.long()
