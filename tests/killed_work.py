"""Kills work right before one of its file operations, in a child that does not survive it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence

# What owns a function that changes files, and its name.
Operation = tuple[object, str]


def work_until(
    work: Callable[[], object], operations: Sequence[Operation], number: int | None
) -> int:
    """Works; right before the file operation of that number (from 1) the process kills itself.

    Returns how many operations there were.
    """
    calls = []

    def counted(original):
        def operation(*arguments, **keywords):
            calls.append(original)
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **keywords)

        return operation

    originals = [getattr(owner, name) for owner, name in operations]
    try:
        for (owner, name), original in zip(operations, originals):
            setattr(owner, name, counted(original))
        work()
    finally:
        for (owner, name), original in zip(operations, originals):
            setattr(owner, name, original)
    return len(calls)


def kill_before(work: Callable[[], object], operations: Sequence[Operation], number: int) -> None:
    """Runs `work_until` in a child; for processes of one thread."""
    child = os.fork()
    if child == 0:
        work_until(work, operations, number)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it ended before it was killed"
