"""Being asked to stop: the first signal finishes the step and saves, the second leaves at once."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

from rwkv_train.training.launchers.exit_statuses import DONE, stopped_by

# SIGUSR1 is what job schedulers send some minutes before the end.
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)

_STDERR = 2


class StopRequest:
    """Remembers the first stop signal between `listen` and `release`."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Takes over the stop signals; only possible in the main thread."""
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._on_signal)

    def release(self) -> None:
        """Restores the handlers that were there before `listen`."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    @property
    def exit_status(self) -> int:
        """The status that a shell expects of a process ended by a signal; 0 without a signal."""
        return DONE if self.received is None else stopped_by(self.received)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            # Only remembered here: a handler runs between any two bytecodes, in the middle of a
            # collective call or a save as well.
            self.received = number
            name = signal.Signals(number).name
            told = f"\n{name}: saving after this step, then leaving; once more leaves at once\n"
            # Not printed: a stream that is being written to, which may have to wait for its
            # reader, raises in a handler, and that would end the run without a save.
            with suppress(OSError):
                os.write(_STDERR, told.encode())
            return
        # By its default action, so that the parent sees a process that died of this signal.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def ignore_stop_signals(worker: int) -> None:
    """Makes a loader worker deaf to stop signals, `worker` being its number.

    Ctrl-C reaches the whole process group, and the step that is being finished needs its data.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def ignore_launchers() -> None:
    """Makes a process that is about to leave deaf to the signals by which launchers end others.

    Its own status is to be what they see, not that it died of their signal. Ctrl-C still ends it.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in SIGNALS:
        if number != signal.SIGINT:
            signal.signal(number, signal.SIG_IGN)
