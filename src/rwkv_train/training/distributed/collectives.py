"""All ranks know of one rank's fault, and leave together.

A rank that left alone would leave the others waiting in the next collective call.
"""

from __future__ import annotations

from typing import Any

import torch

from rwkv_train.errors import TrainerError, TrainingError


class FaultElsewhereError(TrainingError):
    """Raised by the ranks that leave because of a fault which rank zero tells the user."""


def gather_objects(strategy: Any, own: Any) -> list[Any]:
    """What every rank passes, by rank; a collective call.

    strategy: Lightning's.
    """
    if strategy.world_size == 1:
        return [own]
    gathered: list[Any] = [None] * strategy.world_size
    torch.distributed.all_gather_object(gathered, own)
    return gathered


def gather_to_first(strategy: Any, own: Any) -> list[Any]:
    """What every rank passes, by rank, on rank zero; [] on the others. A collective call.

    For what is large and needed once.
    """
    if strategy.world_size == 1:
        return [own]
    first = strategy.is_global_zero
    gathered: list[Any] | None = [None] * strategy.world_size if first else None
    torch.distributed.gather_object(own, gathered, dst=0)
    return gathered or []


def raise_together(strategy: Any, fault: TrainerError | None) -> None:
    """Raises the fault of the first rank that has one, on every rank; a collective call.

    Rank zero raises the fault itself, the others FaultElsewhereError. Without a fault it is a
    barrier.
    """
    faults = [found for found in gather_objects(strategy, fault) if found is not None]
    if faults:
        raise faults[0] if strategy.is_global_zero else FaultElsewhereError(str(faults[0]))
