"""A sample and a micro batch: the fields that pass from the data set to the model."""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Sample(NamedTuple):
    """One row to train on.

    tokens, targets: [T] int64, the targets one token later.
    mask: [T] fp32 weights of the targets, None: all 1. They are scaled so that the mean of weight
        times cross entropy over all samples of an optimizer step is that step's loss.
    reset: [T] bool, True where a document starts, which sees nothing of what came before; None:
        nowhere.
    fault: why the sample could not be read ("": it could); it is zeros then.
    number: the global sample number.
    position: of the first token in its row, when the row is read in windows.
    """

    tokens: Tensor
    targets: Tensor
    mask: Tensor | None = None
    reset: Tensor | None = None
    fault: str = ""
    number: int = 0
    position: int = 0


class Batch(NamedTuple):
    """B samples: tokens, targets, mask, reset [B, T] or None; faults, numbers: one per sample.

    position: of the first tokens in their rows.
    counts: whether the loss mask counts any of the targets; asked here, since a GPU that is asked
        later would have to be waited for.
    """

    tokens: Tensor
    targets: Tensor
    mask: Tensor | None
    reset: Tensor | None
    faults: tuple[str, ...]
    numbers: tuple[int, ...]
    position: int
    counts: bool = True

    def to(self, device: torch.device) -> Batch:
        """Returns the batch on `device`; Lightning calls for it, and would search all fields."""
        if device.type == "cpu":
            return self
        parts: list[Any] = [
            # As Lightning does it: the host need not wait for the copy of pinned memory.
            part.to(device, non_blocking=True) if isinstance(part, Tensor) else part
            for part in self
        ]
        return Batch(*parts)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stacks samples of equal length and position into one batch.

    All have a mask or none, and so for the resets.
    """
    tokens, targets, masks, resets, faults, numbers, positions = zip(*samples)
    assert len(set(positions)) == 1, f"windows at different positions: {positions}"
    mask = _stacked(masks)
    return Batch(
        torch.stack(tokens),
        torch.stack(targets),
        mask,
        _stacked(resets),
        faults,
        numbers,
        positions[0],
        mask is None or bool(mask.any()),
    )


def send_batches_by_value() -> None:
    """Lets a loader's workers send the contents of a batch through their pipe.

    torch sends descriptors of shared memory, a socket, a mapping and its page faults a tensor:
    several times as long as the few KB that a batch of tokens has.
    """
    ForkingPickler.register(Batch, _contents)


def _contents(batch: Batch) -> tuple[Any, ...]:
    """Returns what a batch is pickled as: arrays, for which torch has no rules of its own."""
    return _from_contents, tuple(p.numpy() if isinstance(p, Tensor) else p for p in batch)


def _from_contents(*parts: Any) -> Batch:
    fields: list[Any] = [torch.from_numpy(p) if isinstance(p, np.ndarray) else p for p in parts]
    return Batch(*fields)


def _stacked(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Stacks a field of all samples; None when no sample has it. A sample with a fault lacks it."""
    present = [part for part in parts if part is not None]
    if not present:
        return None
    nothing = torch.zeros_like(present[0])
    return torch.stack([nothing if part is None else part for part in parts])
