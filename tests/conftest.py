"""Runs before all tests: says why GPU tests are skipped and keeps results repeatable."""

from __future__ import annotations

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks `gpu` tests as skipped, with the reason, on a machine without a CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device and this machine has none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
