"""Measures what bf16 is worth on this processor, once at the start of a run on a CPU.

Without units for it torch computes bf16 products many times slower than fp32 ones; with them
several times faster. fp32 is the precision of a CPU unless another is asked for, and what is asked
for is obeyed: only people are told. So nothing that is learnt depends on a clock, and a run resumes
as it began.
"""

from __future__ import annotations

import time
from functools import cache

import torch
from torch import Tensor

from rwkv_train.config.resolved import ResolvedHardware

# Tokens and width of the products, 0.1 GFLOP each: large enough for the units, milliseconds in all.
_TOKENS, _WIDTH = 256, 512
# The best of so many; the first of them also prepares the kernels.
_ATTEMPTS = 4
# Below it is not worth a remark, above it not a matter of noise.
_CLEARLY_FASTER = 1.5
_CLEARLY_SLOWER = 0.8


def bf16_notes(hardware: ResolvedHardware) -> list[str]:
    """Returns what people should know of bf16 on this processor, a line or none."""
    if hardware.accelerator == "gpu":
        return []
    speed = bf16_speed()
    if hardware.precision == "bf16" and speed < _CLEARLY_SLOWER:
        return [
            f"bf16 was asked for, and its products run at {speed:.2g} times the speed of fp32 on "
            "this processor; --precision fp32 is faster"
        ]
    if hardware.precision == "fp32" and speed > _CLEARLY_FASTER:
        return [
            f"bf16 products run at {speed:.1f} times the speed of fp32 on this processor; "
            "--precision bf16 takes them"
        ]
    return []


@cache
def bf16_speed() -> float:
    """Returns the speed of bf16 products, those of a layer's step, in units of fp32 ones.

    Measured once per process, which may train several times on the one processor.
    """
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        # Not random: the generator belongs to the run.
        x = torch.full((_TOKENS, _WIDTH), 0.5, dtype=dtype)
        weight = torch.full((_WIDTH, _WIDTH), 0.25, dtype=dtype)
        seconds.append(min(_seconds(x, weight) for _ in range(_ATTEMPTS)))
    return seconds[0] / seconds[1]


def _seconds(x: Tensor, weight: Tensor) -> float:
    """Returns how long a layer's products take: forward and both gradients."""
    began = time.perf_counter()
    y = x @ weight.t()
    y @ weight
    y.t() @ x
    return time.perf_counter() - began
