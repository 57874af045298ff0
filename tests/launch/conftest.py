"""The corpus and the command lines of the training tests."""

from __future__ import annotations

from tests.training.conftest import corpus, flags

__all__ = ["corpus", "flags"]
