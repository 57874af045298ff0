"""All ranks know of one rank's fault, and leave together.

A rank that left alone would leave the others waiting in the next collective call.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, NoReturn, overload

import torch
from torch import Tensor

from rwkv_train.errors import TrainerError, exit_status
from rwkv_train.training.distributed.rank_store import RankFault, RemoteRankError

# Seconds for which ranks wait in one collective call; every timeout of these calls is longer.
_PATIENCE = 5.0


def mean_over_ranks(strategy: Any, own: Tensor) -> Tensor:
    """Returns the mean of what every rank passes, [n] on its device. Collective.

    Lightning's own reduction waits for all ranks before it begins to.
    """
    if strategy.world_size == 1:
        return own
    total = own.clone()
    torch.distributed.all_reduce(total)
    return total / int(strategy.world_size)


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

    That rank raises it itself, the others RemoteRankError, so that the user reads one line. Without
    a fault it is a barrier.
    """
    rank = strategy.global_rank
    told = None
    if fault is not None:
        told = RankFault(rank, socket.gethostname(), fault.in_one_line(), exit_status(fault))
    for found in filter(None, gather_objects(strategy, told)):
        if fault is not None and found.rank == rank:
            raise fault
        raise RemoteRankError(found)
