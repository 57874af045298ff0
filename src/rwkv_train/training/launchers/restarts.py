"""Keeps launchers from starting again what is not to be started again."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from rwkv_train.errors import REFUSED, ConfigError
from rwkv_train.training.launchers.exit_statuses import PREEMPTED
from rwkv_train.training.launchers.launch import Variables

# torchrun itself stops processes by SIGTERM, to start them with others: that is no end.
_FINAL = (REFUSED, PREEMPTED)
_AGENTS = ("torchrun", "torch.distributed.run", "torch/distributed/run.py", "accelerate")


def is_final(status: int) -> bool:
    """Tells whether whoever supervises a run is not to start it again at once, after a fault."""
    return status in _FINAL


def forbid_restart(status: int, environment: Mapping[str, str]) -> None:
    """Ends torchrun's agent, if it would start again a run that was refused or preempted.

    torchrun knows no exit status that it does not answer with a restart; SIGTERM makes it leave,
    and tells the agents of other machines so. Called last: it ends this process too.
    """
    if not is_final(status) or not _would_restart(Variables(environment)):
        return
    parent = os.getppid()
    if not any(name in _command(parent) for name in _AGENTS):
        return
    sys.stdout.flush()
    sys.stderr.flush()
    with suppress(OSError):
        os.kill(parent, signal.SIGTERM)


def supervised_since(environment: Mapping[str, str]) -> float | None:
    """Returns when the agent of torchrun began that has started this process.

    In seconds since the epoch. None: there is none, or the system does not tell (Linux does).
    """
    if "TORCHELASTIC_RUN_ID" not in environment:
        return None
    try:
        # Behind the name, which may hold anything: the twentieth field, in ticks since the boot.
        fields = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/stat").read_text().partition("\nbtime ")[2].split()[0]
    except (OSError, IndexError):
        return None
    return int(boot) + int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _would_restart(variables: Variables) -> bool:
    try:
        done = variables.number("TORCHELASTIC_RESTART_COUNT")
        most = variables.number("TORCHELASTIC_MAX_RESTARTS")
        # The first of a machine leaves when the others have, and has told why by then.
        is_first = variables.number("LOCAL_RANK") == 0
    except ConfigError:
        return False
    return is_first and done is not None and most is not None and done < most


def _command(process: int) -> str:
    """Returns the command line of a process; "" where the system does not tell."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return ""
    return words.replace(b"\0", b" ").decode(errors="replace")
