"""Two speeds of this machine, for the record: none of them is right or wrong."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch

_SIZE, _TIMES = 512, 5


def measured_speeds(tokens_per_second: Mapping[str, float], device: str) -> dict[str, Any]:
    """Returns the golden runs' tokens per second by version, and the rate of matrix products.

    The rate in GFLOP/s: of 512 x 512 by 512 x 512, the median of five.
    """
    products = {
        name: _product_rate(dtype, device)
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    return {"golden_tokens_per_second": dict(tokens_per_second), "product_gflops": products}


def median_speed(steps: list[dict[str, Any]]) -> float:
    """Returns the tokens per second of a run's usual step."""
    median: float = statistics.median(step["tokens_per_second"] for step in steps)
    return round(median, 1)


def _product_rate(dtype: torch.dtype, device: str) -> float:
    left = torch.ones(_SIZE, _SIZE, dtype=dtype, device=device)
    left @ left
    seconds = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        # Reading one number waits for a card.
        (left @ left)[0, 0].item()
        seconds.append(time.perf_counter() - began)
    return round(2 * _SIZE**3 / statistics.median(seconds) / 1e9, 1)
