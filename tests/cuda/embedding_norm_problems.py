"""Calls to try the CUDA kernels of the embedding with its norm on, and their results on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.cuda.host_kernels import (
    DTYPE_CODES,
    Guarded,
    HostKernels,
    Interface,
    surrounded,
    tensors_of,
)
from tests.ops.embedding_norm_cases import EPS, Case

# Sorted places of a task, and places of a token that are added together; cuda/embedding_norm.
PLACES, OCCURRENCES = 16, 64
INTERFACE = Interface(
    "embedding_norm",
    "EmbeddingNormForward",
    "embedding_norm::CudaBackward",
    ("tokens", "vocabulary", "width", "dtype", "eps"),
    ("ids", "table", "weight", "bias", "y"),
    ("gy", "order", "table", "weight", "gtable", "sums", "sorted", "blocks"),
    with_options=False,
)


def norm_kernel_results(
    kernels: HostKernels, case: Case, dtype: torch.dtype, *, wants_table: bool = True
) -> dict[str, Tensor]:
    """Runs the kernels and returns the results of `run`, each in its own dtype.

    Around every input lie NaN, around every output guard bytes.
    """
    tokens, width = case.inputs["table"].shape
    count = case.ids.numel()
    sizes = (count, tokens, width, DTYPE_CODES[dtype], EPS)
    table = surrounded(case.inputs["table"].to(dtype))
    weight, bias = (surrounded(case.inputs[name].float()) for name in ("weight", "bias"))
    y = Guarded((*case.ids.shape, width), dtype)
    given = {"ids": case.ids.contiguous(), "table": table, "weight": weight, "bias": bias}
    kernels.forward(sizes, {**given, "y": y.tensor})
    in_order, order = case.ids.flatten().int().sort(stable=True)
    buffers = {
        "gtable": Guarded((tokens, width), dtype),
        "sums": Guarded((-(-count // PLACES), 2, width), torch.float32),
        "blocks": Guarded((2 * -(-count // OCCURRENCES), width), torch.float32),
    }
    buffers["gtable"].tensor.zero_()
    outputs = tensors_of(buffers)
    shown = {**outputs, "gtable": outputs["gtable"] if wants_table else None}
    gy = surrounded(case.gy.to(dtype))
    inputs = {"gy": gy, "order": order, "table": table, "weight": weight, "sorted": in_order}
    kernels.backward(sizes, {**inputs, **shown})
    for name, buffer in {"y": y, **buffers}.items():
        buffer.check(name)
    gweight, gbias = outputs["sums"].sum(0)
    return {"y": y.tensor, "gtable": outputs["gtable"], "gweight": gweight, "gbias": gbias}
