"""Watches a process that trains alone: nobody waits for it, but data may never come."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

from rwkv_train.training.distributed.hangs import find_hang
from rwkv_train.training.distributed.pulse import Pulse
from rwkv_train.training.distributed.stacks import own_stack, short_stack
from rwkv_train.training.launchers.exit_statuses import HUNG


class LoneWatch:
    """A thread that ends the process once it hangs, until `stop`.

    seconds: for which it may stand still, and cold_seconds before its first step; leave: does what
    cannot wait for the main thread.
    """

    def __init__(
        self, pulse: Pulse, seconds: float, cold_seconds: float, leave: Callable[[], None]
    ) -> None:
        self._pulse = pulse
        self._seconds, self._cold_seconds = seconds, cold_seconds
        self._leave = leave
        self._stopped = threading.Event()
        threading.Thread(target=self._look, name="watch", daemon=True).start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()

    def _look(self) -> None:
        while not self._stopped.wait(1.0):
            beat = self._pulse.beat("", os.getpid())
            hang = find_hang({0: beat}, self._seconds, self._cold_seconds)
            if hang is None:
                continue
            stack = own_stack()
            print(
                f"{stack}\nerror: the process {hang.message}; it is in {short_stack(stack)}",
                file=sys.stderr,
                flush=True,
            )
            self._leave()
            os._exit(HUNG)
