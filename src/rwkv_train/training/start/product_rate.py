"""Measures how fast this machine multiplies matrices of the model's shapes, for the MFU.

The figure is kept in the user's cache folder, for this machine, torch, precision, number of threads
and shapes: runs are comparable with one another, and a busy moment does not make a run look better
than it is. The best of several attempts counts, since other programs can only slow one down.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwkv_train.compiler import cache_folder
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.run_length import window_len
from rwkv_train.errors import BackendError
from rwkv_train.files import write_atomically
from rwkv_train.processors import processor_name

RATES_FOLDER = "product-rates"
# FLOPs of a product at most: tenths of a second on a slow processor.
_CPU_FLOPS = 4e9
# Rows of a product at most; a card is full with them, and the run's memory is not.
_MOST_ROWS = 16384
# FLOPs that a card is given at a time: milliseconds, beside which launches do not count.
_GPU_FLOPS = 2e12
# Products at most for that: a small model's are bound by their launches, here as in training.
_MOST_LAUNCHES = 200
# Attempts, and the seconds after which no more are begun.
_ATTEMPTS, _PATIENCE = 12, 1.0
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class ProductRate(NamedTuple):
    """Speed of one device at the model's products; flops: a second; shape: rows, sums, columns.

    measured_now: not read from the cache.
    """

    flops: float
    shape: tuple[int, int, int]
    measured_now: bool

    def describe(self, precision: str) -> str:
        """Returns it in words."""
        rows, sums, columns = self.shape
        kept = "measured now" if self.measured_now else "measured at an earlier start"
        return (
            f"{in_units(self.flops)}FLOP/s a device, {kept}: {precision} products of "
            f"{rows:,} x {sums:,} with {sums:,} x {columns:,}"
        )


def in_units(count: float) -> str:
    """Returns a count with three digits and the prefix of its unit: "102 G"."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {prefix}"
    return f"{count:.3g} "


def product_rate(
    config: ResolvedConfig, *, anew: bool, measure: Callable[..., float] | None = None
) -> ProductRate:
    """Returns the speed of products of [tokens, D] with the channel mix's [D, F].

    anew: measures although the cache has it. measure: as `measured_flops`, which it is by default.
    To be called once the run has chosen who multiplies fp32 matrices.
    """
    shape = product_shape(config)
    key = _key(config, shape)
    file = _cache_file(key)
    known = None if anew or file is None else _read(file, key)
    if known is not None:
        return ProductRate(known, shape, False)
    found = (measure or measured_flops)(config, shape)
    if config.hardware.accelerator == "gpu":
        # The run's memory is its own.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if file is not None:
        _write(file, {**key, "flops": found})
    return ProductRate(found, shape, True)


def product_shape(config: ResolvedConfig) -> tuple[int, int, int]:
    """Returns rows, sums and columns: tokens of a micro batch, as many as are worth measuring."""
    width, hidden = config.model.n_embd, config.model.dim_ffn
    tokens = config.train.micro_bsz * (config.train.chunk_len or window_len(config))
    rows = min(tokens, _MOST_ROWS)
    if config.hardware.accelerator != "gpu":
        rows = min(rows, max(1, int(_CPU_FLOPS / (2 * width * hidden))))
    return rows, width, hidden


def measured_flops(
    config: ResolvedConfig,
    shape: tuple[int, int, int],
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Returns FLOP/s of the fastest of several products of this shape in the run's precision."""
    rows, sums, columns = shape
    hardware = config.hardware
    device = torch.device("cuda" if hardware.accelerator == "gpu" else "cpu")
    dtype = _DTYPES.get(hardware.precision, torch.float32)
    # Not random: the generator belongs to the run. Not all equal, either: a card that multiplies
    # the same numbers draws less power and runs faster than it does in training.
    left = _numbers(rows, sums, device, dtype)
    right = _numbers(sums, columns, device, dtype)
    result = torch.empty(rows, columns, device=device, dtype=dtype)
    flops = 2.0 * rows * sums * columns
    on_gpu = device.type == "cuda"
    times = min(_MOST_LAUNCHES, math.ceil(_GPU_FLOPS / flops)) if on_gpu else 1

    def seconds() -> float:
        if on_gpu:
            torch.cuda.synchronize()
        began = clock()
        for _ in range(times):
            torch.mm(left, right, out=result)
        if on_gpu:
            torch.cuda.synchronize()
        return clock() - began

    seconds()
    best, end = float("inf"), clock() + _PATIENCE
    for _ in range(_ATTEMPTS):
        best = min(best, seconds())
        if clock() > end:
            break
    return times * flops / max(best, 1e-9)


def _numbers(rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    steps = torch.arange(rows * columns, device=device, dtype=torch.float32)
    return torch.sin(steps.view(rows, columns)).to(dtype)


def _key(config: ResolvedConfig, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Returns all that the speed depends on and that is known."""
    on_gpu = config.hardware.accelerator == "gpu"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else processor_name(),
        "torch": torch.__version__,
        "precision": config.hardware.precision,
        # Who multiplies fp32 matrices, and how exactly.
        "fp32_products": torch.get_float32_matmul_precision(),
        "threads": 0 if on_gpu else torch.get_num_threads(),
        "shape": list(shape),
    }


def _cache_file(key: dict[str, Any]) -> Path | None:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    try:
        folder = cache_folder() / RATES_FOLDER
        folder.mkdir(exist_ok=True)
    except (BackendError, OSError):
        # Measured at every start then.
        return None
    return folder / f"{digest}.json"


def _read(file: Path, key: dict[str, Any]) -> float | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or any(found.get(name) != key[name] for name in key):
        return None
    flops = found.get("flops")
    return flops if isinstance(flops, float) and 0 < flops < math.inf else None


def _write(file: Path, values: dict[str, Any]) -> None:
    try:
        write_atomically(file, (json.dumps(values) + "\n").encode())
    except OSError:
        # A full disk is no reason to lose a run; it is measured again next time.
        return
