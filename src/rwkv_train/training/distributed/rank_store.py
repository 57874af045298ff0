"""Talk between ranks outside of collective calls: values to compare, and the one fault.

It needs torch's key-value store only (`rendezvous`), no process group: so it serves before one
exists, and after one has broken.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch.distributed.distributed_c10d import Store

from rwkv_train.errors import TrainingError

# People are told what is waited for before they ask.
ANNOUNCED_AFTER_SECONDS = 2.0
_SLOWEST_POLL_SECONDS = 0.25
_FAULT = "fault"


@dataclass(frozen=True)
class RankFault:
    """The reason why a run ends on all ranks, as told by the rank that met it.

    message: one line; status: the exit status of every process.
    """

    rank: int
    host: str
    message: str
    status: int

    def __str__(self) -> str:
        # Rank zero is where people look anyway.
        return (
            self.message if self.rank == 0 else f"rank {self.rank} on {self.host}: {self.message}"
        )


class RemoteRankError(TrainingError):
    """Raised by the ranks that leave because of a fault which rank zero tells the user."""

    def __init__(self, fault: RankFault) -> None:
        super().__init__(str(fault))
        self.fault = fault


class RankStore:
    """One rank's access to the store of all ranks; without a store it is alone.

    host: of this process, for messages; seconds: how long it waits for the others; announces: it is
    the one of its machine that says what is waited for.
    """

    def __init__(
        self,
        store: Store | None = None,
        *,
        rank: int = 0,
        world_size: int = 1,
        host: str = "",
        seconds: float = 300.0,
        announces: bool = False,
    ) -> None:
        assert (store is None) == (world_size == 1), "several ranks need a store, one needs none"
        self._store = store
        self.rank = rank
        self.world_size = world_size
        self.host = host
        self._seconds = seconds
        self._announces = announces
        self._gathered: Counter[str] = Counter()

    def gather(self, key: str, value: Any) -> list[Any]:
        """Returns the value of every rank, by rank, on every rank. Collective.

        value: whatever JSON holds. Raises RemoteRankError when a rank leaves instead, TrainingError
        when one does not come in time.
        """
        if self._store is None:
            return [value]
        # The same question may be asked again, and must not find the answers of the first time.
        self._gathered[key] += 1
        place = f"{key}.{self._gathered[key]}"
        keys = [f"{place}/{rank}" for rank in range(self.world_size)]
        self._store.set(keys[self.rank], json.dumps(value))
        # One key to look at, whatever the number of ranks.
        if self._store.add(f"{place}/count", 1) == self.world_size:
            self._store.set(f"{place}/all", "1")
        self._wait_for(f"{place}/all", lambda: self._missing(keys))
        return [json.loads(answer) for answer in self._store.multi_get(keys)]

    def report(self, message: str, status: int, rank: int | None = None) -> RankFault:
        """Tells all ranks that the run ends, and returns the fault that they know now.

        The first one counts: what follows is most often its consequence. rank: the one that it is
        about, None for this one.
        """
        own = RankFault(self.rank if rank is None else rank, self.host, message, status)
        if self._store is None:
            return own
        known = self._store.compare_set(_FAULT, "", json.dumps(asdict(own)))
        return RankFault(**json.loads(known))

    def fault(self) -> RankFault | None:
        """Returns the fault that any rank has reported, None without one."""
        if self._store is None or not self._store.check([_FAULT]):
            return None
        return RankFault(**json.loads(self._store.get(_FAULT)))

    def raise_fault(self) -> None:
        """Raises RemoteRankError when any rank has reported a fault."""
        fault = self.fault()
        if fault is not None:
            raise RemoteRankError(fault)

    def leave(self, seconds: float) -> None:
        """Says that this rank needs the others no more, and waits a while for the same of them.

        Rank zero holds the store, and the others learn from it why they have to leave.
        """
        if self._store is None:
            return
        if self._store.add("left/count", 1) == self.world_size:
            self._store.set("left/all", "1")
        deadline = time.monotonic() + seconds
        while not self._store.check(["left/all"]) and time.monotonic() < deadline:
            time.sleep(0.05)

    def _missing(self, keys: list[str]) -> str:
        assert self._store is not None, "nobody else is missed"
        missing = [str(rank) for rank, key in enumerate(keys) if not self._store.check([key])]
        shown = ", ".join(missing[:8]) + (" and others" if len(missing) > 8 else "")
        return f"rank{'s' if len(missing) > 1 else ''} {shown} of {self.world_size}"

    def _wait_for(self, key: str, missing: Callable[[], str]) -> None:
        assert self._store is not None, "there is nobody to wait for"
        began, pause, announced = time.monotonic(), 0.005, False
        while not self._store.check([key]):
            self.raise_fault()
            waited = time.monotonic() - began
            if waited > self._seconds:
                raise TrainingError(
                    f"{missing()} did not answer for {self._seconds:g} s; look at what it printed, "
                    "and give --dist_timeout SECONDS if it needs longer"
                )
            if waited > ANNOUNCED_AFTER_SECONDS and self._announces and not announced:
                announced = True
                print(f"waiting for {missing()} ...", file=sys.stderr, flush=True)
            time.sleep(pause)
            pause = min(2 * pause, _SLOWEST_POLL_SECONDS)
