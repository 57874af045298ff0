"""Watches, beside training, that all ranks are alive, and makes this one leave when one is not.

Training waits inside collective calls, which notice a lost process late or never. So a thread tells
the others every second that this rank lives and looks for a fault; a second one sees to it that a
process leaves whose main thread, or whose connection, does not come back.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

from torch.distributed.distributed_c10d import Store

from rwkv_train.training.distributed.rank_store import RankFault, RankStore
from rwkv_train.training.launchers.children import Children

BEAT_SECONDS = 1.0
# A busy machine, or a long call into C++, holds up a thread of Python too.
SILENT_SECONDS = 60.0
# What the main thread gets to leave by itself once a fault is known.
GRACE_SECONDS = 5.0
LOST_RANK_ZERO = "rank 0 does not answer any more: it was killed, or the connection broke"


class Watch:
    """The two threads of one rank, until `stop`.

    ranks, store: over a connection of their own; children: those that this process has started;
    before_leaving: called with the fault before this process is made to leave; silent_seconds:
    after which a rank, or the connection to rank zero, counts as lost, SILENT_SECONDS at most.
    """

    def __init__(
        self,
        ranks: RankStore,
        store: Store,
        children: Children | None,
        before_leaving: Callable[[RankFault], None],
        silent_seconds: float,
    ) -> None:
        self._silent_seconds = min(silent_seconds, SILENT_SECONDS)
        self._ranks = ranks
        self._store = store
        self._children = children
        self._before_leaving = before_leaving
        self._fault: RankFault | None = None
        self._seen = threading.Event()
        self._stopped = threading.Event()
        self._contact = time.monotonic()
        self._beats: dict[int, tuple[bytes, float]] = {}
        self._talker = threading.Thread(target=self._talk, name="watch", daemon=True)
        self._talker.start()
        threading.Thread(target=self._guard, name="watch-guard", daemon=True).start()

    def fault(self, seconds: float) -> RankFault | None:
        """Returns the fault of another rank, or one that shows within so many seconds."""
        self._seen.wait(seconds)
        return self._fault

    def silent_ranks(self, seconds: float) -> list[int]:
        """Returns the other ranks that have not told for so long that they live."""
        now = time.monotonic()
        return [
            rank
            for rank, (_, since) in sorted(self._beats.items())
            if rank != self._ranks.rank and now - since > seconds
        ]

    def stop(self) -> None:
        """Ends both threads."""
        self._stopped.set()
        self._talker.join(timeout=BEAT_SECONDS)

    def _talk(self) -> None:
        try:
            while not self._stopped.is_set():
                self._report_children()
                self._store.set(f"alive/{self._ranks.rank}", str(time.monotonic()))
                self._look_for_silence()
                fault = self._ranks.fault()
                self._contact = time.monotonic()
                if fault is not None:
                    self._see(fault)
                    return
                self._stopped.wait(BEAT_SECONDS / 4 if self._children else BEAT_SECONDS)
        except RuntimeError:
            # Of the store: rank zero is gone.
            self._contact = -self._silent_seconds

    def _report_children(self) -> None:
        for child in self._children.take_failed() if self._children else []:
            # It has most often told itself why it left, which counts then.
            self._ranks.report(child.describe(), 1, rank=child.rank)
            self._ranks.leave(0, rank=child.rank)

    def _look_for_silence(self) -> None:
        """Keeps how old every sign of life is; ends a run that has lost a rank for good."""
        keys = [f"alive/{rank}" for rank in range(self._ranks.world_size)]
        # Before all have come, `RankStore` waits for them, with a limit of its own.
        if self._ranks.rank != 0 or not self._store.check(keys):
            return
        now = time.monotonic()
        for rank, beat in enumerate(self._store.multi_get(keys)):
            if rank not in self._beats or self._beats[rank][0] != beat:
                self._beats[rank] = (beat, now)
        limit = self._silent_seconds
        for rank in self.silent_ranks(limit):
            told = f"not heard of for {limit:g} s: its machine or the connection is gone"
            self._ranks.report(told, 1, rank=rank)
            # It cannot say so itself, and nobody has to wait for it.
            self._ranks.leave(0, rank=rank)

    def _see(self, fault: RankFault) -> None:
        self._fault = fault
        self._seen.set()

    def _guard(self) -> None:
        while not self._stopped.wait(0.25):
            if self._fault is None and time.monotonic() - self._contact > self._silent_seconds:
                self._see(RankFault(0, "", LOST_RANK_ZERO, 1))
            if self._fault is not None:
                break
        if self._fault is None or self._stopped.wait(GRACE_SECONDS):
            return
        self._before_leaving(self._fault)
        sys.stdout.flush()
        sys.stderr.flush()
        # The main thread waits for a rank that does not come.
        os._exit(self._fault.status)
