"""The one table of tolerances, for tests and users: how far a result may be from the exact one."""

from __future__ import annotations

import torch
from torch import Tensor

# Largest relative RMS error of a faster path against the fp64 reference.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
# A result in 16 bit may err as much as the exact one stored once, and this factor: what fp32 sums
# err by moves a result across a rounding boundary now and then (measured: 1.00006 in fp16).
STORED_ONCE = 1.001


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """Returns the root mean square of the difference over that of `expected`.

    The difference itself where `expected` is zero throughout.
    """
    actual, expected = actual.detach().double(), expected.detach().double()
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    difference = (actual - expected).square().mean().sqrt().item()
    scale = expected.square().mean().sqrt().item()
    return difference / scale if scale > 0 else difference


def stored_error(exact: Tensor, dtype: torch.dtype) -> float:
    """Returns the relative RMS error of `exact` stored once in `dtype`; 0 in fp32 and fp64.

    No result in `dtype` can have a smaller one.
    """
    return 0.0 if dtype in TOLERANCE else relative_rms(exact.to(dtype), exact)


def allowed_error(exact: Tensor, dtype: torch.dtype) -> float:
    """Returns the largest relative RMS error of a result in `dtype` whose exact value is `exact`.

    In 16 bit: that of `exact` stored once, and fp32's for the sums before.
    """
    if dtype in TOLERANCE:
        return TOLERANCE[dtype]
    return STORED_ONCE * stored_error(exact, dtype) + TOLERANCE[torch.float32]
