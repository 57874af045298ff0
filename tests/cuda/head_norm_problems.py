"""Gated head norm calls to try the CUDA kernels on, executed on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_train.ops.head_norm_gate import SILU
from tests.cuda.fused_problems import JOINED_BLOCKS, SUM_TOKENS
from tests.cuda.host_kernels import (
    DTYPE_CODES,
    Guarded,
    HostKernels,
    Interface,
    surrounded,
    tensors_of,
)
from tests.ops.head_norm_cases import EPS, HeadNormCase, dtype_of

_INPUTS = ("y", "g", "weight", "bias", "v", "s")
_GRADIENTS = ("gy", "gg", "gv", "gs", "sums", "total")
INTERFACE = Interface(
    "head_norm_gate",
    "HeadNormForward",
    "HeadNormBackward",
    ("batch", "time", "heads", "size", "dtype", "silu", "eps"),
    (*_INPUTS, "o"),
    ("go", *_INPUTS, *_GRADIENTS),
    with_options=False,
)


def head_norm_kernel_results(
    kernels: HostKernels, case: HeadNormCase, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Runs the kernels and returns the result and every gradient, each in its own dtype.

    Around every input lie NaN, around every output guard bytes.
    """
    batch, time, heads, size = case.inputs["y"].shape
    width = heads * size
    sizes = (*case.inputs["y"].shape, DTYPE_CODES[dtype], int(case.activation == SILU), EPS)
    given: dict[str, Tensor | None] = dict.fromkeys(_INPUTS)
    given |= {name: surrounded(x.to(dtype_of(name, dtype))) for name, x in case.inputs.items()}
    o = Guarded((batch, time, width), dtype)
    kernels.forward(sizes, {**given, "o": o.tensor})
    pieces = -(-batch * -(-time // SUM_TOKENS) // JOINED_BLOCKS)
    gradients = {
        f"g{name}": Guarded(case.inputs[name].shape, dtype_of(name, dtype))
        for name in case.inputs
        if name not in ("weight", "bias")
    }
    gradients["sums"] = Guarded((pieces, 2, width), torch.float32)
    gradients["total"] = Guarded((2, width), torch.float32)
    outputs = {**dict.fromkeys(_GRADIENTS), **tensors_of(gradients)}
    kernels.backward(sizes, {"go": surrounded(case.go.to(dtype)), **given, **outputs})
    for name, buffer in {"o": o, **gradients}.items():
        buffer.check(name)
    found = {"o": o.tensor, **tensors_of(gradients)}
    del found["sums"]
    found["gweight"], found["gbias"] = found.pop("total").unbind()
    return found
