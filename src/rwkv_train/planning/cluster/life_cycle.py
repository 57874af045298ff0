"""Seconds that the life of a run on failing machines is made of, and what a save costs."""

from __future__ import annotations

from dataclasses import dataclass

from rwkv_train.planning.step_time import HOST_LINK


@dataclass(frozen=True)
class LifeCycle:
    """Seconds of what happens again and again in a run.

    step: of an optimizer step; data, validation: what it waits for the loader, and its share of
    what is validated.  save_pause: training stands still; save_write: after that, until the state
    is complete on disk.  detect: from a failure until the others have noticed, in a step that
    breaks off; restart: from there to the first step, without the reload of the state.
    between_failures: mean seconds between failures of any node; infinite: none fails.
    """

    step: float
    save_pause: float
    save_write: float
    detect: float
    restart: float
    reload: float
    between_failures: float
    data: float = 0.0
    validation: float = 0.0

    @property
    def whole_step(self) -> float:
        """Seconds from one step to the next, where nothing is saved."""
        return self.step + self.data + self.validation

    @property
    def recovery(self) -> float:
        """Seconds from a failure to the first step after it, where no other failure comes."""
        return self.detect + self.restart + self.reload


@dataclass(frozen=True)
class Storage:
    """The disks that states are written to.

    disk: bytes/s of one node, to its disk or its way to the storage; shared: of what all nodes
    write to together; None: it keeps up with all of them.
    """

    disk: float
    shared: float | None = None

    def seconds(self, size: float, nodes: int) -> float:
        """Returns how long `nodes` that each have an equal part of `size` bytes take."""
        alone = size / nodes / self.disk
        return alone if self.shared is None else max(alone, size / self.shared)


@dataclass(frozen=True)
class SaveCost:
    """The cost of saving and reading a state.

    size: bytes of all parts; shard: of one rank's.  pause: seconds of copying the shard out of the
    card; write: of writing it beside training; reload: of reading it, and copying it back.
    """

    size: int
    shard: float
    pause: float
    write: float
    reload: float


def sharded_save(size: int, nodes: int, cards: int, storage: Storage) -> SaveCost:
    """Returns the cost of a state of `size` bytes, divided among all cards of all nodes."""
    shard = size / (nodes * cards)
    copied = shard / HOST_LINK
    moved = storage.seconds(size, nodes)
    return SaveCost(size, shard, copied, moved, moved + copied)


def gathered_save(size: int, storage: Storage) -> SaveCost:
    """Returns the cost of a state that one process gathers, copies and writes; all read it."""
    copied, moved = size / HOST_LINK, storage.seconds(size, 1)
    return SaveCost(size, size, copied, moved, moved + copied)
