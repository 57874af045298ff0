"""AdamW by torch's own operators: the ground truth for the native kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rwkv_train.ops.backends.dispatch import serves_every_call

if TYPE_CHECKING:
    from rwkv_train.ops.adamw import AdamwOptions, AdamwTensors

refuses = serves_every_call


@torch.no_grad()
def run(
    gradients: Sequence[Tensor],
    tensors: AdamwTensors | None = None,
    options: AdamwOptions | None = None,
) -> Tensor | None:
    """Returns the norm of `gradients`; with tensors and options makes a step instead."""
    if tensors is None or options is None:
        norms = [torch.linalg.vector_norm(gradient.double()) for gradient in gradients]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return norm
    for i in range(len(gradients)):
        _step(i, tensors, options)
    return None


def _step(i: int, tensors: AdamwTensors, options: AdamwOptions) -> None:
    parameter, rate = tensors.parameters[i], options.rates[i]
    gradient = tensors.gradients[i].to(parameter.dtype)
    if options.norm is not None:
        factor = (options.limit / (options.norm + 1e-6)).clamp(max=1)
        gradient = gradient * factor.to(parameter.dtype)
    step = tensors.steps[i].add_(1).item()
    moment, square = tensors.exp_avgs[i], tensors.exp_avg_sqs[i]
    parameter.mul_(1 - rate * options.decays[i])
    moment.lerp_(gradient, 1 - options.beta1)
    square.mul_(options.beta2).addcmul_(gradient, gradient, value=1 - options.beta2)
    root = (1 - options.beta2**step) ** 0.5
    step_size = rate / (1 - options.beta1**step)
    parameter.addcdiv_(moment, square.sqrt() / root + options.eps, value=-step_size)
    if tensors.weights:
        tensors.weights[i].copy_(parameter)
