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
# Two of the beats at which ranks ask for a fault.
_HURRIED_SECONDS = 2.0
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

    host: of this process, for messages; machines: of the run; seconds: how long it waits for a rank
    that works; start_seconds: for one that has not come yet; announces_after: seconds after which
    it says whom it waits for, None: others of its machine say it.
    """

    def __init__(
        self,
        store: Store | None = None,
        *,
        rank: int = 0,
        world_size: int = 1,
        host: str = "",
        machines: int = 1,
        seconds: float = 1800.0,
        start_seconds: float = 300.0,
        announces_after: float | None = None,
    ) -> None:
        assert (store is None) == (world_size == 1), "several ranks need a store, one needs none"
        self._store = store
        self.rank = rank
        self.world_size = world_size
        self.host = host
        self._machines = machines
        self._seconds = seconds
        self._start_seconds = start_seconds
        self._announces_after = announces_after
        self._gathered: Counter[str] = Counter()

    def take_place(self) -> bool:
        """Tells the others that this rank has come; False when another process is this rank."""
        return self._store is None or self._store.add(f"come/{self.rank}", 1) == 1

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
        self._wait_for(f"{place}/all", keys)
        return [json.loads(answer) for answer in self._store.multi_get(keys)]

    def report(
        self, message: str, status: int, rank: int | None = None, host: str | None = None
    ) -> RankFault:
        """Tells all ranks that the run ends, and returns the fault that they know now.

        The first one counts: what follows is most often its consequence. rank, host: those that it
        is about, None for this process's.
        """
        own = RankFault(self.rank if rank is None else rank, host or self.host, message, status)
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

    def leave(
        self,
        seconds: float,
        rank: int | None = None,
        late_seconds: float = 0.0,
        hurries: Callable[[], bool] | None = None,
    ) -> None:
        """Says that a rank needs the others no more, and waits a while for the same of all.

        rank: a child that can say it no more, None for this one. Rank zero holds the store, and
        the others learn from it why they have to leave. late_seconds: for how long of it ranks are
        waited for that have not even come. hurries: tells that who does not come soon was ended.
        """
        if self._store is None:
            return
        self._store.set(f"left/{self.rank if rank is None else rank}", "1")
        began = time.monotonic()
        while (waited := time.monotonic() - began) < seconds:
            if hurries is not None and hurries():
                # Whoever still can has asked for a fault by then.
                seconds = min(seconds, waited + _HURRIED_SECONDS)
                hurries = None
            is_late = waited < late_seconds
            needed = set(range(self.world_size)) if is_late else self._present("come")
            if self._present("left") >= needed:
                return
            time.sleep(0.05)

    def has_left(self, rank: int | None = None) -> bool:
        """Tells whether a rank, None: any, needs the others no more, or was lost."""
        if self._store is None:
            return False
        return bool(self._present("left")) if rank is None else self._store.check([f"left/{rank}"])

    def _present(self, kind: str) -> set[int]:
        assert self._store is not None, "a rank alone leaves nobody"
        return {rank for rank in range(self.world_size) if self._store.check([f"{kind}/{rank}"])}

    def _wait_for(self, key: str, keys: list[str]) -> None:
        """Returns once `key` is there, which the rank sets that comes last to set its own."""
        assert self._store is not None, "there is nobody to wait for"
        began, pause, announced = time.monotonic(), 0.005, self._announces_after is None
        while not self._store.check([key]):
            self.raise_fault()
            waited = time.monotonic() - began
            # Who is missing costs a question a rank: not asked as long as all is well.
            if waited > min(self._start_seconds, self._seconds):
                self._raise_if_late(keys, waited)
            if not announced and waited > (self._announces_after or 0):
                announced = True
                told = self._describe(self._absent(keys) or [self.rank])
                print(f"waiting for {told} ...", file=sys.stderr, flush=True)
            time.sleep(pause)
            pause = min(2 * pause, _SLOWEST_POLL_SECONDS)

    def _raise_if_late(self, keys: list[str], waited: float) -> None:
        come = [f"come/{rank}" for rank in range(self.world_size)]
        for places, limit, what in (
            (come, self._start_seconds, "did not start"),
            (keys, self._seconds, "did not answer"),
        ):
            late = self._absent(places)
            if late and waited > limit:
                raise TrainingError(
                    f"{self._describe(late)} {what} within {limit:g} s; look at what is printed "
                    "there, and give --dist_timeout SECONDS if more is needed"
                )

    def _absent(self, keys: list[str]) -> list[int]:
        assert self._store is not None, "nobody else is missed"
        return [rank for rank, key in enumerate(keys) if not self._store.check([key])]

    def _describe(self, ranks: list[int]) -> str:
        """Returns ranks as people look for them: by machine where there are several."""
        shown = ", ".join(map(str, ranks[:8])) + (" and others" if len(ranks) > 8 else "")
        told = f"rank{'s' if len(ranks) > 1 else ''} {shown} of {self.world_size}"
        if self._machines == 1:
            return told
        machines = sorted({rank * self._machines // self.world_size for rank in ranks})
        numbers = ", ".join(map(str, machines[:8])) + (" and others" if len(machines) > 8 else "")
        return f"machine{'s' if len(machines) > 1 else ''} {numbers} of {self._machines} ({told})"
