"""Shared by the tests: error measures, whose table is the package's, and the golden vectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from rwkv_train.verification.tolerances import STORED_ONCE, TOLERANCE, allowed_error, relative_rms

__all__ = ["STORED_ONCE", "TOLERANCE", "allowed_error", "relative_rms"]

VECTORS = Path(__file__).parent / "vectors"


def assert_close(name: str, actual: torch.Tensor, expected: torch.Tensor, limit: float) -> None:
    """Fails, naming the tensor and its error, when relative_rms exceeds `limit` or is NaN."""
    error = relative_rms(actual, expected)
    assert error <= limit, f"{name}: relative RMS error {error:.3e} > {limit:.1e}"


def load_arrays(name: str) -> dict[str, np.ndarray]:
    """Arrays of tests/vectors/<name>.npz."""
    with np.load(VECTORS / f"{name}.npz", allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def load_json(name: str) -> dict:
    """Contents of tests/vectors/<name>.json."""
    return json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
