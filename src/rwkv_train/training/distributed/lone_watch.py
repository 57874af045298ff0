"""Watches a process that trains alone: nobody waits for it, but data may never come."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

from rwkv_train.training.distributed.hangs import find_hang
from rwkv_train.training.distributed.pulse import BEAT_SECONDS, Pulse
from rwkv_train.training.distributed.rank_store import RankFault
from rwkv_train.training.distributed.stacks import own_stack, short_stack
from rwkv_train.training.launchers.exit_statuses import HUNG

# A busy machine holds up a thread too, but not for so long.
_SUSPENDED_SECONDS = 4.0


class LoneWatch:
    """A thread that ends the process once it hangs, until `stop`.

    seconds: for which it may stand still, and cold_seconds before its first step; leave: does what
    cannot wait for the main thread, which must not raise.
    """

    def __init__(
        self,
        pulse: Pulse,
        seconds: float,
        cold_seconds: float,
        leave: Callable[[RankFault], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pulse = pulse
        self._seconds, self._cold_seconds = seconds, cold_seconds
        self._leave = leave
        self._now = now
        self._stopped = threading.Event()
        threading.Thread(target=self._look, name="watch", daemon=True).start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()

    def _look(self) -> None:
        seen = self._now()
        while not self._stopped.wait(BEAT_SECONDS):
            before, seen = seen, self._now()
            # Stopped as a whole (Ctrl-Z, a frozen container): nothing could move meanwhile.
            if seen - before > _SUSPENDED_SECONDS:
                self._pulse.excuse(seen - before)
            beat = self._pulse.beat("", os.getpid())
            hang = find_hang({0: beat}, self._seconds, self._cold_seconds)
            if hang is None:
                continue
            stack = own_stack()
            told = f"the process {hang.message}; it is in {short_stack(stack)}"
            print(f"{stack}\nerror: {told}", file=sys.stderr, flush=True)
            self._leave(RankFault(0, "", told, HUNG))
            os._exit(HUNG)
