"""Runs before all tests: one thread a process, no deadlines, and why GPU tests are skipped."""

from __future__ import annotations

import os
from pathlib import Path

# The tests' tensors are small and two test processes share two cores: a second thread would spend
# its time waiting. Set before torch is imported and inherited by the runs that tests start; what
# tests several threads asks for them itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The programs that tests start find the package in the checkout, as the scripts do.
SRC = str(Path(__file__).parents[1] / "src")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SRC, os.environ.get("PYTHONPATH")]))

import pytest
import torch
from hypothesis import settings

# A busy machine makes any example slow; that says nothing about the code.
settings.register_profile("without_deadline", deadline=None)
settings.load_profile("without_deadline")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks `gpu` tests as skipped, with the reason, on a machine without a CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device and this machine has none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
