"""Paused runs and locks that the tests of a start share."""

from __future__ import annotations

from tests.training.start.lock_files import holder, quick
from tests.training.start.paused_runs import paused, resume, texts

__all__ = ["holder", "paused", "quick", "resume", "texts"]
