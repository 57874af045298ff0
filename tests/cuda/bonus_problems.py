"""Calls of the bonus's weight to try the CUDA kernels on, executed on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.cuda.fused_problems import JOINED_BLOCKS, SUM_TOKENS
from tests.cuda.host_kernels import (
    DTYPE_CODES,
    Guarded,
    HostKernels,
    Interface,
    surrounded,
    tensors_of,
)
from tests.ops.bonus_cases import BonusCase, bonus_dtype

INTERFACE = Interface(
    "bonus",
    "BonusForward",
    "BonusBackward",
    ("batch", "time", "heads", "size", "dtype"),
    ("r", "k", "weight", "s"),
    ("r", "k", "weight", "gs", "gr_carry", "gk_carry", "gr", "gk", "sums", "total"),
    with_options=False,
)


def bonus_kernel_results(
    kernels: HostKernels, case: BonusCase, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Runs the kernels and returns s and every gradient, each in its own dtype.

    Around every input lie NaN, around every output guard bytes.
    """
    shape = case.inputs["r"].shape
    sizes = (*shape, DTYPE_CODES[dtype])
    given = {name: surrounded(x.to(bonus_dtype(name, dtype))) for name, x in case.inputs.items()}
    s = Guarded(shape[:3], torch.float32)
    kernels.forward(sizes, {**given, "s": s.tensor})
    arriving = {
        name: None if g is None else surrounded(g.to(bonus_dtype(name, dtype)))
        for name, g in case.gradients.items()
    }
    pieces = -(-shape[0] * -(-shape[1] // SUM_TOKENS) // JOINED_BLOCKS)
    outputs = {name: Guarded(shape, dtype) for name in ("gr", "gk")}
    outputs["sums"] = Guarded((pieces, *shape[2:]), torch.float32)
    outputs["total"] = Guarded(shape[2:], torch.float32)
    given |= {"gs": arriving["s"], "gr_carry": arriving["r"], "gk_carry": arriving["k"]}
    kernels.backward(sizes, {**given, **tensors_of(outputs)})
    for name, buffer in {"s": s, **outputs}.items():
        buffer.check(name)
    found = {"s": s.tensor, **tensors_of(outputs)}
    del found["sums"]
    found["gweight"] = found.pop("total")
    return found
