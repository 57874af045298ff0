"""Runs train.py with NaN, or a spike, injected where chosen samples are trained on.

    python -m tests.training.inject_nan WHAT FIRST-LAST,FIRST-LAST,... FLAGS...

WHAT: loss, the loss of a micro batch with one of these samples is NaN; gradient, its
loss is as it should be and its gradients are NaN; spike, its loss is a hundred times itself.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

import train
from rwkv_train.data.samples.batch import Batch
from rwkv_train.training.module import TrainingModule


class NanBackward(torch.autograd.Function):
    """The identity, with NaN for a gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.nan


POISONS = {
    "loss": lambda loss: loss * torch.nan,
    "gradient": NanBackward.apply,
    "spike": lambda loss: loss * 100,
}


def parse(ranges: str) -> set[int]:
    """{3, 4, 9} of 3-4,9-9."""
    pairs = (pair.split("-") for pair in ranges.split(","))
    return {number for first, last in pairs for number in range(int(first), int(last) + 1)}


def poison(what: str, samples: set[int]) -> None:
    """From now on; undone by `TrainingModule.training_step = ` what it was."""
    step = TrainingModule.training_step

    def poisoned(module: TrainingModule, batch: Batch, index: int) -> Tensor:
        loss = step(module, batch, index)
        if not samples & set(batch.numbers):
            return loss
        loss = POISONS[what](loss)
        _, numbers = module._micro_batches.pop()
        module._micro_batches.append((loss.detach(), numbers))
        return loss

    TrainingModule.training_step = poisoned


if __name__ == "__main__":
    poison(sys.argv[1], parse(sys.argv[2]))
    sys.exit(train.main(sys.argv[3:]))
