"""Keeps the environment as it was: checks set variables that libraries read."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def kept_environment() -> Iterator[None]:
    """Restores every variable behind a test."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
