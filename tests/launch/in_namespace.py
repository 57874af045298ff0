"""Runs a program of the project inside a network namespace, as if on another machine.

    python -m tests.launch.in_namespace NAME[:STEP] PROGRAM FLAGS...

With a STEP its network is cut off once the loss of that step is known.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import subprocess
import sys

from rwkv_train.training.progress import Progress

INTERFACE = "eth0"
_CLONE_NEWNET = 0x40000000


def enter(name: str) -> None:
    """Moves this process into the namespace."""
    descriptor = os.open(f"/var/run/netns/{name}", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.setns(descriptor, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    os.close(descriptor)


def cut_off_at(step: int) -> None:
    """Takes the network away once the counters stand at `step`."""
    add_loss = Progress.add_loss

    def struck(progress: Progress, loss: float) -> None:
        add_loss(progress, loss)
        if progress.step == step:
            subprocess.run(["ip", "link", "set", INTERFACE, "down"], check=True)

    Progress.add_loss = struck


if __name__ == "__main__":
    host, _, when = sys.argv[1].partition(":")
    enter(host)
    if when:
        cut_off_at(int(when))
    # As if it had been started by itself: it starts its own copies by these words.
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
