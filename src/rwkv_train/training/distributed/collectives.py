"""All ranks know of one rank's fault, and leave together.

A rank that left alone would leave the others waiting in the next collective call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, overload

import torch

from rwkv_train.errors import TrainerError, TrainingError

# Seconds for which ranks wait in one collective call; every timeout of these calls is longer.
_PATIENCE = 5.0


class RemoteRankError(TrainingError):
    """Raised by the ranks that leave because of a fault which rank zero tells the user."""


def gather_objects(strategy: Any, own: Any) -> list[Any]:
    """Returns what every rank passes, by rank, on every rank. Collective.

    strategy: Lightning's, of which only subclasses declare world_size.
    """
    if strategy.world_size == 1:
        # No process group exists then.
        return [own]
    gathered: list[Any] = [None] * strategy.world_size
    torch.distributed.all_gather_object(gathered, own)
    return gathered


def gather_to_rank_zero(strategy: Any, own: Any) -> list[Any]:
    """Returns what every rank passes, by rank, on rank zero, and [] on the others. Collective.

    For what is large and needed once: the others need no memory for it.
    """
    if strategy.world_size == 1:
        return [own]
    first = strategy.is_global_zero
    gathered: list[Any] | None = [None] * strategy.world_size if first else None
    torch.distributed.gather_object(own, gathered, dst=0)
    return gathered or []


def wait_for_rank_zero(strategy: Any, wait: Callable[[float], bool]) -> None:
    """Returns on every rank once `wait` tells on rank zero that it is over. Collective.

    wait: blocks for at most so many seconds; called on rank zero alone. For work that may take
    longer than the timeout of collective calls, which would end the ranks that wait in one.
    """
    while not gather_objects(strategy, strategy.is_global_zero and wait(_PATIENCE))[0]:
        pass


@overload
def raise_on_all_ranks(strategy: Any, fault: TrainerError) -> NoReturn: ...


@overload
def raise_on_all_ranks(strategy: Any, fault: None) -> None: ...


def raise_on_all_ranks(strategy: Any, fault: TrainerError | None) -> None:
    """Raises the fault of the first rank that has one, on every rank. Collective.

    Rank zero raises the fault itself, the others RemoteRankError, so that the user reads one line.
    Without a fault it is a barrier.
    """
    faults = [found for found in gather_objects(strategy, fault) if found is not None]
    if faults:
        raise faults[0] if strategy.is_global_zero else RemoteRankError(str(faults[0]))
