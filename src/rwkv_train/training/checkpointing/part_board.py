"""Tells the first rank, beside training, what became of every rank's part of a save.

Through the store and not by collective calls: the process group is training's, and two threads in
it would wait for each other for ever.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass

from torch.distributed.distributed_c10d import Store

from rwkv_train.checkpoint.state_manifest import PartFile
from rwkv_train.errors import CheckpointError
from rwkv_train.training.distributed.rank_store import RankStore

_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class PartOutcome:
    """The end of a rank's part: its size and digest, or why there is none.

    is_refused: because there is nothing worth writing.
    """

    size: int = 0
    sha256: str = ""
    fault: str = ""
    is_refused: bool = False

    @property
    def part(self) -> PartFile:
        """The file, of a part that was written."""
        return PartFile(self.size, self.sha256)


class PartBoard:
    """One rank's access to the outcomes of all ranks.

    store, ranks: connections for the thread of the saves alone; store None: this rank is alone.
    """

    def __init__(self, store: Store | None, ranks: RankStore) -> None:
        self._store = store
        self._ranks = ranks
        self._own: dict[int, PartOutcome] = {}

    def post(self, save: int, outcome: PartOutcome) -> None:
        """Tells what became of this rank's part of the save of this number."""
        self._own[save] = outcome
        if self._store is not None:
            self._store.set(_key(save, self._ranks.rank), json.dumps(asdict(outcome)))

    def wait_for_all(self, save: int) -> list[PartOutcome]:
        """Returns the outcomes of all ranks, by rank, once they are there.

        Raises CheckpointError when a rank has left without one.
        """
        if self._store is None:
            return [self._own[save]]
        missing = list(range(self._ranks.world_size))
        found: dict[int, PartOutcome] = {}
        while missing:
            # In this order: a rank that has left has told before.
            gone = {rank for rank in missing if self._ranks.has_left(rank)}
            for rank in missing:
                if self._store.check([_key(save, rank)]):
                    told = json.loads(self._store.get(_key(save, rank)))
                    found[rank] = PartOutcome(**told)
            missing = [rank for rank in missing if rank not in found]
            if lost := gone.intersection(missing):
                raise CheckpointError(
                    f"rank {min(lost)} has left without its part of the training state"
                )
            if missing:
                time.sleep(_POLL_SECONDS)
        return [found[rank] for rank in range(self._ranks.world_size)]

    def forget(self, save: int) -> None:
        """Frees the memory of the outcomes of a save."""
        self._own.pop(save, None)
        if self._store is not None:
            # A store that cannot is one of a test or another library's.
            with suppress(RuntimeError):
                for rank in range(self._ranks.world_size):
                    self._store.delete_key(_key(save, rank))


def _key(save: int, rank: int) -> str:
    return f"{save}/{rank}"
