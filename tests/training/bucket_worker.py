"""Ranks that compare our DDP's gradients with torch's: `python -m tests.training.bucket_worker`.

Each is told its rank as torchrun tells it. The exit status is 0 where the bits are the same.
"""

from __future__ import annotations

import sys
from collections import Counter
from itertools import pairwise

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from rwkv_train.training.distributed.bucket_order import mean_of_bucket, settle_buckets

WIDTHS = (7, 33, 65, 5)
# Three buckets.
BUCKET_MB = 0.008


class Operators(TorchDispatchMode):
    """Counts the calls of each operator."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def wrapped(ours: bool) -> DistributedDataParallel:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(WIDTHS)))
    model = DistributedDataParallel(
        model, bucket_cap_mb=BUCKET_MB, gradient_as_bucket_view=ours, init_sync=False
    )
    if ours:
        model.register_comm_hook(model.process_group, mean_of_bucket)
    settle_buckets(model)
    return model


def gradients(model: DistributedDataParallel, micro_batches: int) -> list[torch.Tensor]:
    """Those of a step on numbers of this rank's own."""
    rank = torch.distributed.get_rank()
    generator = torch.Generator().manual_seed(100 * micro_batches + rank)
    for parameter in model.parameters():
        parameter.grad = None
    for number in range(micro_batches):
        loss = model(torch.randn(11, WIDTHS[0], generator=generator)).sin().sum()
        if number < micro_batches - 1:
            with model.no_sync():
                (loss / micro_batches).backward()
        else:
            (loss / micro_batches).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def compare() -> None:
    theirs, ours = wrapped(False), wrapped(True)
    # Twice, since what a step leaves must not count in the next.
    for micro_batches in (1, 3, 1):
        expected, found = (gradients(model, micro_batches) for model in (theirs, ours))
        assert all(map(torch.equal, found, expected)), f"{micro_batches} micro batches"
    storages = {p.grad.untyped_storage().data_ptr() for p in ours.parameters()}
    assert 1 < len(storages) < len(expected), "gradients do not lie in buckets"
    counted = []
    for model in (theirs, ours):
        with Operators() as operators:
            gradients(model, 1)
        counted.append(operators.counts["aten::mul"] + operators.counts["aten::mul_"])
    assert counted[0] - counted[1] == len(expected) - len(storages), counted


def main() -> int:
    torch.distributed.init_process_group("gloo")
    try:
        compare()
    finally:
        torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
