"""RWKV-LM's -1 for "no warmup", as flags, config.yaml and training states hold it."""

from __future__ import annotations

_NO_WARMUP = -1


def read_warmup(stored: int) -> int | None:
    """Returns the steps of warmup, None for none."""
    return None if stored == _NO_WARMUP else stored


def stored_warmup(steps: int | None) -> int:
    """Returns the inverse of `read_warmup`."""
    return _NO_WARMUP if steps is None else steps
