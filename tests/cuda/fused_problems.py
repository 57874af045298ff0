"""RWKV-7's fused operators as their CUDA launchers take them, and every result of a call."""

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
from tests.ops.fused_cases import OPERATORS, FusedCase

# Tokens of a block of the sums over tokens, and blocks that one block of threads joins:
# cuda/common/params/token_blocks.h and cuda/common/gpu/token_runs.cuh.
SUM_TOKENS, JOINED_BLOCKS = 64, 4

FUSED_INTERFACES = {
    "keys": Interface(
        "keys",
        "KeysForward",
        "KeysBackward",
        ("batch", "time", "heads", "size", "dtype"),
        ("key", "logits", "base", "removal", "replacement", "k", "a", "b"),
        (
            *("gk", "ga", "gb", "key", "logits", "base", "removal", "replacement"),
            *("gkey", "glogits", "sums", "total"),
        ),
        with_options=False,
    ),
    "value_residual": Interface(
        "value_residual",
        "ValueResidualForward",
        "ValueResidualBackward",
        ("batch", "time", "width", "dtype"),
        ("value", "first", "logits", "base", "v"),
        (
            *("gv", "gagain", "gcarry", "value", "first", "logits", "base"),
            *("gvalue", "gfirst", "glogits", "sums", "total"),
        ),
        with_options=False,
    ),
}


def fused_kernel_results(
    kernels: HostKernels, case: FusedCase, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Runs both kernels on a rounded case; every result but one that is only handed on.

    Around every input lie NaN, around every output guard bytes.
    """
    operator, interface = OPERATORS[case.op], kernels.interface
    first = next(iter(case.inputs.values()))
    vectors = [case.inputs[name] for name in operator.parameters]
    sizes = (*first.shape, DTYPE_CODES[dtype])
    given: dict[str, Tensor | None] = {
        name: surrounded(x.to(torch.float32 if name in operator.parameters else dtype))
        for name, x in case.inputs.items()
    }
    computed = [name for name in operator.results if name in interface.forward]
    results = {name: Guarded(first.shape, dtype) for name in computed}
    kernels.forward(sizes, given | tensors_of(results))
    given |= {
        f"g{name}": None if g is None else surrounded(g.to(dtype))
        for name, g in case.gradients.items()
    }
    blocks = first.shape[0] * -(-first.shape[1] // SUM_TOKENS)
    gradients = {f"g{name}": Guarded(first.shape, dtype) for name in operator.sequences}
    count = len(vectors) * vectors[0].numel()
    sums = {
        "sums": Guarded((-(-blocks // JOINED_BLOCKS), count), torch.float32),
        "total": Guarded((len(vectors), vectors[0].numel()), torch.float32),
    }
    kernels.backward(sizes, given | tensors_of(gradients | sums))
    for name, buffer in {**results, **gradients, **sums}.items():
        buffer.check(name)
    found = tensors_of(results | gradients)
    totals = sums["total"].tensor.unbind()
    return found | {f"g{name}": x for name, x in zip(operator.parameters, totals, strict=True)}
