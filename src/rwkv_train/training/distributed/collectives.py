"""All ranks know of one rank's fault, and leave together.

A rank that left alone would leave the others waiting in the next collective call.
"""

from __future__ import annotations

from typing import Any, NoReturn, overload

import torch

from rwkv_train.errors import TrainerError, exit_status
from rwkv_train.training.distributed.rank_store import RankFault, RemoteRankError


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


@overload
def raise_on_all_ranks(strategy: Any, fault: TrainerError) -> NoReturn: ...


@overload
def raise_on_all_ranks(strategy: Any, fault: None) -> None: ...


def raise_on_all_ranks(strategy: Any, fault: TrainerError | None) -> None:
    """Raises the fault of the first rank that has one, on every rank. Collective.

    Rank zero raises the fault itself, the others RemoteRankError, so that the user reads one line.
    Without a fault it is a barrier.
    """
    for rank, found in enumerate(gather_objects(strategy, fault)):
        if found is None:
            continue
        if strategy.is_global_zero:
            raise found
        told = RankFault(rank, "another machine", found.in_one_line(), exit_status(found))
        raise RemoteRankError(told)
