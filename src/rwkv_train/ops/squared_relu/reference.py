"""The squared relu by torch's own operators: the ground truth for the native kernels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from rwkv_train.ops.backends.dispatch import serves_every_call

refuses = serves_every_call


def run(p: Tensor) -> Tensor:
    """Returns relu(p)², [B, T, F]; gradients by autograd.

    Not widened: relu and the factor 2 of the gradient are exact in every dtype, so that each result
    is rounded once.
    """
    return F.relu(p).square()
