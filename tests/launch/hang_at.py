"""Runs train.py and lets one of its processes hang at a chosen step, or dawdle.

    python -m tests.launch.hang_at STEP KIND@R FLAGS...

Once the loss of step STEP is known, the process of rank R: STOP, is stopped by SIGSTOP; LOADER,
reads a sample without end; HELD, keeps Python's lock inside of a call into C; DEAF, hears nothing
any more of what the other ranks send it in collective calls, as if the link were cut. WORKER: its
loader's process reads the first sample of step STEP without end, two being read a step. SLOW: it
reads every sample slowly from the first step on.
Only in the first start by torchrun, if there are several.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path

import train
from rwkv_train.data.samples.batch import Sample
from rwkv_train.training.distributed.stragglers import Stragglers
from rwkv_train.training.loader import FaultRecordingDataset
from tests.training.kill_at import strike_at_step

# Steps of the tests are shorter than what lies between two signs of life.
_BEATS_SECONDS = 2.5
# Of <linux/filter.h> and <asm/socket.h>: one instruction, which accepts nothing of a packet.
_SO_ATTACH_FILTER = 26
_NOTHING = struct.pack("HBBI", 0x06, 0, 0, 0)


def stop() -> None:
    """Stops this process, all of its threads."""
    time.sleep(_BEATS_SECONDS)
    os.kill(os.getpid(), signal.SIGSTOP)


def loop_in_the_loader() -> None:
    """Lets the next sample be read without end."""

    def read_for_ever(dataset: FaultRecordingDataset, number: int) -> None:
        while True:
            number += 1

    FaultRecordingDataset.__getitem__ = read_for_ever


def loop_in_a_worker(samples: int) -> None:
    """Lets the loader's own process, of which there is one, read its sample so-and-so for ever."""
    read = FaultRecordingDataset.__getitem__
    seen: list[int] = []

    def read_for_ever(dataset: FaultRecordingDataset, number: int) -> Sample:
        seen.append(number)
        if len(seen) > samples:
            print(f"\nreads for ever: {os.getpid()}", flush=True)
        while len(seen) > samples:
            pass
        return read(dataset, number)

    FaultRecordingDataset.__getitem__ = read_for_ever


def dawdle() -> None:
    """Lets every sample take a while."""
    read = FaultRecordingDataset.__getitem__

    def read_slowly(dataset: FaultRecordingDataset, number: int) -> Sample:
        time.sleep(0.05)
        return read(dataset, number)

    FaultRecordingDataset.__getitem__ = read_slowly


def hold_the_lock() -> None:
    """Sleeps in C without letting other threads run."""
    time.sleep(_BEATS_SECONDS)
    ctypes.PyDLL(None).sleep(600)


def drop_all(end: socket.socket) -> None:
    """Drops whatever arrives on a connection, without an acknowledgement."""
    code = ctypes.create_string_buffer(_NOTHING)
    program = struct.pack("HP", 1, ctypes.addressof(code))
    end.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def go_deaf() -> None:
    """Cuts the connections between ranks, which are not the store's."""
    store = int(os.environ["MASTER_PORT"])
    for link in list(Path("/proc/self/fd").iterdir()):
        with suppress(OSError), socket.socket(fileno=os.dup(int(link.name))) as end:
            ports = end.getsockname()[1], end.getpeername()[1]
            if end.family != socket.AF_UNIX and store not in ports:
                drop_all(end)


KINDS = {"STOP": stop, "LOADER": loop_in_the_loader, "HELD": hold_the_lock, "DEAF": go_deaf}


def main(step: str, what: str, argv: list[str]) -> int:
    """Exit status of train.py."""
    kind, _, rank = what.partition("@")
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    # Slow ranks are told after seconds, not minutes.
    Stragglers.__init__.__defaults__ = (1.0,)
    if first and os.environ.get("RANK", "0") == rank:
        if kind == "WORKER":
            loop_in_a_worker(2 * int(step))
        elif kind == "SLOW":
            dawdle()
        else:
            strike_at_step(int(step), KINDS[kind])
    return train.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
