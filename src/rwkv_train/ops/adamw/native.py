"""AdamW by the project's own kernels: C++ on a CPU, CUDA on a GPU (`cuda/adamw`).

A call is one launch over a table of all tensors, whatever their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rwkv_train.ops.backends.dispatch import Call, Refusal
from rwkv_train.ops.native.custom_ops import PlainOps, refusal

if TYPE_CHECKING:
    from rwkv_train.ops.adamw import AdamwOptions, AdamwTensors

# They change tensors in place, outside any graph: nothing to fake.
_OPS = PlainOps({})


def refuses(call: Call) -> Refusal | None:
    """Returns what stands in the way; None once the kernels are built and loaded."""
    return refusal(call, _OPS)


@torch.no_grad()
def run(
    gradients: Sequence[Tensor],
    tensors: AdamwTensors | None = None,
    options: AdamwOptions | None = None,
) -> Tensor | None:
    """Returns the norm of `gradients`; with tensors and options makes a step instead."""
    if tensors is None or options is None:
        norm: Tensor = torch.ops.rwkv.adamw_norm(gradients)
        return norm
    torch.ops.rwkv.adamw_update(
        tensors.parameters,
        gradients,
        tensors.exp_avgs,
        tensors.exp_avg_sqs,
        tensors.weights,
        tensors.steps,
        *options,
    )
    return None
