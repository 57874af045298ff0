"""The split tanh by torch's own operators: the ground truth for the native kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_train.ops.backends.dispatch import serves_every_call

refuses = serves_every_call


def run(x: Tensor, parts: int) -> Tensor:
    """Returns tanh(x), [n, B, T, R]; gradients by autograd.

    Not widened: torch computes it in fp32 (fp64), keeps the result and rounds once each way.
    """
    return torch.unflatten(torch.tanh(x), -1, (parts, -1)).movedim(2, 0)
