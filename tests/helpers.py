"""Shared by the tests: the one tolerance table, error measures and the golden vectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

VECTORS = Path(__file__).parent / "vectors"

# Largest relative RMS error of a faster path against the fp64 reference.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
# A result in 16 bit may err as much as the exact one stored once, and this factor: what fp32 sums
# err by moves a result across a rounding boundary now and then (measured: 1.00006 in fp16).
STORED_ONCE = 1.001


def relative_rms(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the difference over that of `expected` (absolute if that is zero)."""
    actual, expected = actual.detach().double(), expected.detach().double()
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    difference = (actual - expected).square().mean().sqrt().item()
    scale = expected.square().mean().sqrt().item()
    return difference / scale if scale > 0 else difference


def allowed_error(exact: torch.Tensor, dtype: torch.dtype) -> float:
    """The largest relative RMS error of a result in `dtype` whose exact value is `exact`.

    In 16 bit: that of `exact` stored once, and fp32's for the sums before.
    """
    if dtype in TOLERANCE:
        return TOLERANCE[dtype]
    return STORED_ONCE * relative_rms(exact.to(dtype), exact) + TOLERANCE[torch.float32]


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
