"""Products of a few vectors with a matrix by the project's own kernel: C++ on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_train.ops.backends.dispatch import Call, Refusal
from rwkv_train.ops.matvec import MOST_VECTORS
from rwkv_train.ops.native.custom_ops import PlainOps, refusal


def _fake(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


_OPS = PlainOps({"matvec_forward": _fake})


def refuses(call: Call) -> Refusal | None:
    """Returns what stands in the way; None once the kernel is built and loaded."""
    if call.device.type != "cpu":
        return Refusal("it has a kernel for CPUs only", news=False)
    if call.dtype == torch.float64:
        return Refusal("it does not serve float64", news=False)
    # The call's vectors, rounded up to a power of two.
    if call.time > MOST_VECTORS:
        return Refusal(f"it serves up to {MOST_VECTORS} vectors", news=False)
    return refusal(call, _OPS)


def run(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    """Returns x weightᵀ, [..., N]; see `matvec.matvec`."""
    y: Tensor = torch.ops.rwkv.matvec_forward(x, weight, scale)
    return y
