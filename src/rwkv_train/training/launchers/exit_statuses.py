"""The exit statuses of a run, and what whoever supervises it does about each.

A status says whether the same command may help: docs/clusters.md has this table with the settings
of schedulers that obey it.
"""

from __future__ import annotations

import signal
from typing import NamedTuple

from rwkv_train.errors import FAULT, REFUSED

DONE = 0
# EX_TEMPFAIL of <sysexits.h>: try again.
HUNG = 75


class Advice(NamedTuple):
    """The meaning of a status and what follows; restarts: whether to start the run again."""

    means: str
    restarts: bool
    then: str


def stopped_by(number: int) -> int:
    """Returns the status of a run that a signal of this number has asked to stop."""
    return 128 + number


# A signal that asks to stop; Windows lacks SIGUSR1.
PREEMPTED = stopped_by(getattr(signal, "SIGUSR1", 10))

ADVICE = {
    DONE: Advice("done as asked", False, "nothing is left to do"),
    FAULT: Advice(
        "a fault: a lost process or machine, a full disk, too many bad steps",
        True,
        "start again, a limited number of times",
    ),
    REFUSED: Advice(
        "refused: flags, data or files are wrong", False, "never start again: a person mends it"
    ),
    HUNG: Advice("hung: a process stood still, which was named", True, "start again at once"),
    stopped_by(signal.SIGINT): Advice(
        "stopped by Ctrl-C, state saved", False, "a person has asked for it"
    ),
    PREEMPTED: Advice(
        "stopped by SIGUSR1, state saved", True, "start again when the scheduler gives time"
    ),
    stopped_by(signal.SIGTERM): Advice(
        "stopped by SIGTERM, state saved", True, "start again when the machine is there again"
    ),
}


def may_start_again(status: int) -> bool:
    """Tells whether a run that has left with this status is to be started again.

    One that is not in the table was killed (minus a signal's number, or 128 and above).
    """
    known = ADVICE.get(status)
    return known is None or known.restarts
