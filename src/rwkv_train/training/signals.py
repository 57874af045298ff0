"""Being asked to stop: the first signal finishes the step and saves, the second leaves at once."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

# SIGUSR1 is what job schedulers send some minutes before the end.
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)


class StopRequest:
    """Remembers the first stop signal between `listen` and `release`."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, object] = {}

    def listen(self) -> None:
        """Takes over the signals; only possible in the main thread."""
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._on_signal)

    def release(self) -> None:
        """Gives the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    @property
    def exit_status(self) -> int:
        """What a shell expects of a process that a signal ended; 0 without a signal."""
        return 0 if self.received is None else 128 + self.received

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            name = signal.Signals(number).name
            print(
                f"\n{name}: saving after this step, then leaving; once more leaves at once",
                file=sys.stderr,
                flush=True,
            )
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def ignore_stop_signals(worker: int) -> None:
    """For loader workers: Ctrl-C reaches the whole process group, and the step needs its data."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
