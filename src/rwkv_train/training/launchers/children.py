"""The processes of this machine that the program starts itself: copies with another rank."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

# Of <sys/prctl.h>: which signal a process gets when its parent dies.
_PR_SET_PDEATHSIG = 1
_MODULE = "rwkv_train.training"


class EndedChild(NamedTuple):
    """A child that has ended: its rank, and its exit status, minus the signal that killed it."""

    rank: int
    status: int

    def describe(self) -> str:
        """Returns how it ended, as people are told."""
        if self.status >= 0:
            return f"ended with status {self.status} before the others"
        number = -self.status
        name = signal.Signals(number).name if number in list(signal.Signals) else "unknown"
        often = ""
        if number == signal.SIGKILL:
            # It cannot say so itself.
            often = "; often the machine was out of memory: docs/out_of_memory.md"
        return f"killed by signal {number} ({name}{often})"


class Children:
    """Processes started with `command`, one for each of these environments, by rank."""

    def __init__(
        self, command: Sequence[str], environments: Mapping[int, Mapping[str, str]]
    ) -> None:
        self._running = {
            rank: subprocess.Popen(command, env=dict(environment))
            for rank, environment in environments.items()
        }

    def take_failed(self) -> list[EndedChild]:
        """Returns those that have ended badly since the last call."""
        ended = [
            EndedChild(rank, status)
            for rank, process in self._running.items()
            if (status := process.poll()) is not None
        ]
        for child in ended:
            del self._running[child.rank]
        return [child for child in ended if child.status != 0]

    def wait(self, seconds: float) -> None:
        """Returns once all have ended; after so many seconds it kills those that have not."""
        deadline = time.monotonic() + seconds
        for process in self._running.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()


def own_command(argv: Sequence[str]) -> list[str]:
    """Returns the command that starts this program once more with these arguments.

    The same script or module, in front of whose arguments others may stand; the trainer's module
    where another program has called it with arguments of its own.
    """
    given = sys.argv[1:]
    is_own = list(argv) == given[len(given) - len(argv) :]
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if is_own and spec is not None:
        return [sys.executable, "-m", spec.name, *given]
    script = Path(sys.argv[0])
    if is_own and script.is_file():
        return [sys.executable, str(script.absolute()), *given]
    return [sys.executable, "-m", _MODULE, *argv]


def die_with_parent(parent: int) -> None:
    """Lets the system kill this process when its parent ends, however that happens."""
    # Elsewhere than on Linux the store tells, a little later.
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            print("error: the process that started this one has ended", file=sys.stderr)
            sys.exit(1)
