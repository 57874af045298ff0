"""Does what is due before a process leaves, also while its main thread waits and cannot.

A save is finished before the folder is given back, and why the run ends is written down before
that. Nothing here may keep the process: one that does not leave is what its supervisor cannot heal.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from rwkv_train.errors import FAULT, TrainerError, exit_status, short_reason
from rwkv_train.training.distributed.rank_store import RankFault, RemoteRankError

INTERRUPTED = "interrupted; the same command resumes from the newest checkpoint"


class Leaving:
    """The calls of one process: `at_fault` and `at_leave` keep them, `hurry` makes them.

    seconds: that a save may take to be finished, after which the process leaves without it; cause:
    finds out which rank's fault is behind an exception, None where there is one rank.
    """

    def __init__(self, seconds: float, cause: Callable[[Exception], RankFault] | None) -> None:
        self._seconds = seconds
        self._cause = cause
        self._at_fault: list[Callable[[RankFault], None]] = []
        self._at_leave: list[Callable[[], None]] = []
        self._noting = threading.Lock()
        self._noted = False

    def at_fault(self, call: Callable[[RankFault], None]) -> None:
        """Keeps a call that writes down why this run ends; made once, by whoever knows first."""
        self._at_fault.append(call)

    def at_leave(self, call: Callable[[], None]) -> None:
        """Keeps a call for the case that this process must leave while its main thread waits.

        The last one that is kept is made first, as `with` blocks end.
        """
        self._at_leave.append(call)

    @contextmanager
    def noting_faults(self) -> Iterator[None]:
        """Writes down why the run ends, where something inside ends it.

        Of several ranks the one that has met the fault is found out first, and RemoteRankError
        raised in the place of what a library has raised.
        """
        try:
            yield
        except RemoteRankError as error:
            self.note(error.fault)
            raise
        except TrainerError as error:
            self.note(RankFault(0, "", error.in_one_line(), exit_status(error)))
            raise
        except KeyboardInterrupt:
            self.note(RankFault(0, "", INTERRUPTED, 130))
            raise
        except Exception as error:
            if self._cause is None:
                self.note(RankFault(0, "", first_line(error), FAULT))
                raise
            fault = self._cause(error)
            self.note(fault)
            raise RemoteRankError(fault) from error

    def note(self, fault: RankFault) -> None:
        """Makes the calls of `at_fault`, unless they have been made."""
        with self._noting:
            noted, self._noted = self._noted, True
        if not noted:
            for call in self._at_fault:
                _attempt(partial(call, fault))

    def hurry(self, fault: RankFault) -> None:
        """Makes all calls, of another thread than the main one."""
        limit = threading.Timer(self._seconds, self._give_up, [fault.status or FAULT])
        limit.daemon = True
        limit.start()
        self.note(fault)
        for call in reversed(self._at_leave):
            _attempt(call)
        limit.cancel()

    def _give_up(self, status: int) -> None:
        print(
            f"error: what was left to save is not on disk after {self._seconds:g} s; leaving",
            file=sys.stderr,
            flush=True,
        )
        os._exit(status)


def bounded(seconds: float, call: Callable[[], None]) -> None:
    """Returns when `call` has, and after so many seconds in any case. RuntimeError is passed over.

    Of the store: rank zero is gone.
    """

    def tried() -> None:
        with suppress(RuntimeError):
            call()

    caller = threading.Thread(target=tried, daemon=True)
    caller.start()
    caller.join(seconds)


def first_line(error: Exception) -> str:
    """Returns what an exception says, in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _attempt(call: Callable[[], None]) -> None:
    try:
        call()
    # Anything: what follows it, and the end of the process, must not depend on it.
    except Exception as error:
        print(f"WARNING: while leaving: {short_reason(error)}", file=sys.stderr, flush=True)
