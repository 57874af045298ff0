"""16-bit weights with fp32 masters: the forward pass reads half the bytes, and no update is lost.

In bf16 alone 1 - 1/1000 is 1: the optimizer's steps add up in the masters, and the weights are
these, rounded. Under autocast the weights themselves are fp32, and every product rounds its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def round_weights(model: nn.Module, *, sums_in_fp32: bool) -> dict[Tensor, Tensor]:
    """Turns all weights into bf16; returns the fp32 masters of those that learn.

    sums_in_fp32: keeps gradients in fp32, for several backward passes before a step: sums that are
    rounded after each of them would lose the small ones.
    """
    masters: dict[Tensor, Tensor] = {}
    for parameter in model.parameters():
        value = parameter.data
        parameter.data = value.bfloat16()
        if parameter.requires_grad:
            masters[parameter] = value
            if sums_in_fp32:
                parameter.grad_dtype = torch.float32
    return masters
