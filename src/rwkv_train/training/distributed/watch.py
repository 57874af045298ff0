"""Watches, beside training, that all ranks move, and makes this one leave when one does not.

Training waits inside collective calls, which notice a lost process late or never. So a thread tells
the others every second what this rank does and looks for a fault; a second one sees to it that a
process leaves whose main thread, or whose connection, does not come back.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from itertools import count

from torch.distributed.distributed_c10d import Store

from rwkv_train.errors import FAULT
from rwkv_train.training.distributed.judge import Judge, Limits
from rwkv_train.training.distributed.pulse import BEAT_SECONDS, Pulse
from rwkv_train.training.distributed.rank_store import RankFault, RankStore
from rwkv_train.training.launchers.children import Children

# What the main thread gets to leave by itself once a fault is known.
GRACE_SECONDS = 5.0
_STDERR = 2


class Watch:
    """The two threads of one rank, until `stop`.

    ranks, store: over a connection of their own; pulse: of this rank's main thread; children: those
    that this process has started; before_leaving: called with the fault before this process is made
    to leave; limits: after which a rank, or the connection to rank zero, counts as lost or hung.
    """

    def __init__(
        self,
        ranks: RankStore,
        store: Store,
        pulse: Pulse,
        children: Children | None,
        before_leaving: Callable[[RankFault], None],
        limits: Limits,
    ) -> None:
        self._silent_seconds = limits.silent_seconds
        self._ranks = ranks
        self._judge = Judge(ranks, store, pulse, limits, os.getpid())
        self._children = children
        self._before_leaving = before_leaving
        self._fault: RankFault | None = None
        self._seen = threading.Event()
        self._stopped = threading.Event()
        self._contact = time.monotonic()
        self._talker = threading.Thread(target=self._talk, name="watch", daemon=True)
        self._talker.start()
        self._guardian = threading.Thread(target=self._guard, name="watch-guard", daemon=True)
        self._guardian.start()

    def fault(self, seconds: float) -> RankFault | None:
        """Returns the fault of another rank, or one that shows within so many seconds."""
        self._seen.wait(seconds)
        return self._fault

    def silent_ranks(self, seconds: float) -> list[int]:
        """Returns the other ranks that have not told for so long that they live."""
        return self._judge.silent_ranks(seconds)

    def stop(self) -> None:
        """Ends both threads."""
        self._stopped.set()
        self._guardian.join(timeout=BEAT_SECONDS)
        self._talker.join(timeout=BEAT_SECONDS)

    def _talk(self) -> None:
        try:
            while not self._stopped.is_set():
                self._report_children()
                self._judge.tell()
                self._judge.look()
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
            self._ranks.report(child.describe(), FAULT, rank=child.rank)
            self._ranks.leave(0, rank=child.rank)

    def _see(self, fault: RankFault) -> None:
        self._fault = fault
        self._seen.set()

    def _guard(self) -> None:
        for turn in count():
            if self._stopped.wait(0.25):
                break
            # A call into C++ that keeps Python's lock, or a stopped process: no thread of Python
            # runs, and the others take this rank for lost. faulthandler's own thread then shows
            # the stack and ends the process.
            if turn % 4 == 0:
                faulthandler.dump_traceback_later(self._silent_seconds + 1, exit=True, file=_STDERR)
            if self._fault is None and time.monotonic() - self._contact > self._silent_seconds:
                self._see(RankFault(0, "", *self._judge.loss_of_rank_zero()))
            if self._fault is not None:
                break
        faulthandler.cancel_dump_traceback_later()
        if self._fault is None or self._stopped.wait(GRACE_SECONDS):
            return
        self._before_leaving(self._fault)
        sys.stdout.flush()
        sys.stderr.flush()
        # The main thread waits for a rank that does not come.
        os._exit(self._fault.status)
