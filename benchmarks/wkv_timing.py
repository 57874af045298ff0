"""How `benchmarks.wkv` takes times, and the floors of the machine it compares them with."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

COPY_BYTES = 256 * 2**20
MATMUL_SIZE, SMALL_MATMUL_SIZE = 2048, 256


def alternate(
    works: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Returns median seconds of each work; all take turns, so that a disturbance meets all.

    clock: another one, such as that of the time which processors spend on this process.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for attempt in range(repeats + 1):
        for name, run in works.items():
            wait(device)
            began = clock()
            run()
            wait(device)
            # the first turn warms up
            if attempt:
                seconds[name].append(clock() - began)
    return {name: statistics.median(times) for name, times in seconds.items()}


def wait(device: torch.device) -> None:
    """Returns when the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_rate(device: torch.device) -> float:
    """Returns bytes read and written per second by a copy far larger than the caches."""
    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    seconds = alternate({"copy": lambda: target.copy_(source)}, 5, device)["copy"]
    return 2 * COPY_BYTES / seconds


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Returns FLOP/s of a square matrix product in `dtype`, or in fp32 where that is faster.

    A processor without 16-bit units is a hundred times slower in bf16 than in fp32, in which our
    kernels compute.
    """
    kinds = list({dtype, torch.float32})
    fastest = max(kinds, key=lambda kind: square_product_rate(device, kind, SMALL_MATMUL_SIZE))
    return square_product_rate(device, fastest, MATMUL_SIZE)


def square_product_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Returns FLOP/s of the product of two size x size matrices."""
    a = torch.randn(size, size, device=device).to(dtype)
    seconds = alternate({"product": lambda: a @ a}, 5, device)["product"]
    return 2 * size**3 / seconds
