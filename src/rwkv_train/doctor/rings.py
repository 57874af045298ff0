"""Checks that processes add up numbers together, as ranks do: gloo on CPUs, NCCL on cards."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from rwkv_train.doctor.child_command import child_command
from rwkv_train.doctor.findings import (
    Answers,
    Finding,
    bytes_text,
    fault,
    good,
    in_one_line,
    skipped,
    warning,
)
from rwkv_train.training.environment import child_variables, quiet_connections
from rwkv_train.training.launchers.children import die_with_parent
from rwkv_train.training.launchers.launch import LOOPBACK

if TYPE_CHECKING:
    # torch.distributed names it in no __all__.
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

# Of every process's gradients, and how often they are added up.
SUM_BYTES, REPEATS = 16 << 20, 5
# A ring on one machine is slower than that where its traffic leaves the machine.
SLOW_SUM_BYTES_PER_S = {"gloo": 50e6, "nccl": 500e6}
_LIMIT_S = 40.0
_REMEDY = {
    "gloo": "unset GLOO_SOCKET_IFNAME; let the firewall pass: sudo iptables -I INPUT -i lo -j "
    "ACCEPT",
    "nccl": "NCCL_DEBUG=INFO rwkv-doctor --only nccl, whose lines tell; often shared memory is "
    "small: docker run --shm-size=8g",
}


def check_gloo(folder: Path) -> Answers:
    """Yields whether two processes on CPUs add up numbers, and how fast."""
    yield from _ring("gloo", 2)


def check_nccl(folder: Path) -> Answers:
    """Yields whether all cards add up numbers, and how fast; one card starts NCCL alone."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        yield skipped("torch uses no card here")
        return
    yield from _ring("nccl", count)


def _ring(backend: str, size: int) -> Answers:
    quiet_connections()
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    yield f"start {size} processes with {backend}"
    limit = timedelta(seconds=_LIMIT_S)
    try:
        store = TCPStore(
            LOOPBACK, 0, is_master=True, timeout=limit, wait_for_workers=False, world_size=size
        )
        with _others(backend, size, store.port):
            seconds = summed_seconds(backend, 0, size, store)
    except Exception as error:
        yield fault(
            f"{size} processes cannot work together by {backend}: {in_one_line(str(error))}",
            _REMEDY[backend],
        )
        return
    yield _judged(backend, size, seconds)


def _judged(backend: str, size: int, seconds: float) -> Finding:
    if size == 1:
        return good(f"{backend} starts on the one card")
    rate = SUM_BYTES / seconds
    told = f"{size} processes add up {bytes_text(SUM_BYTES)} at {rate / 1e9:.2f} GB/s"
    measured = {"processes": size, "bytes_per_s": round(rate)}
    if rate < SLOW_SUM_BYTES_PER_S[backend]:
        return warning(
            f"{told}: slow for processes of one machine",
            "end what else keeps the processors busy; see the checks load and network",
            **measured,
        )
    return good(told, **measured)


@contextmanager
def _others(backend: str, size: int, port: int) -> Iterator[None]:
    """Runs the processes other than the first for as long as the block; ends what is left."""
    processes = [
        subprocess.Popen(
            child_command("rwkv_train.doctor.rings", backend, rank, size, port, os.getpid()),
            env=child_variables({}),
            # Of the parent its lines of JSON.
            stdout=2,
        )
        for rank in range(1, size)
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def summed_seconds(backend: str, rank: int, size: int, store: TCPStore) -> float:
    """Returns how long adding up takes, the best of some; raises RuntimeError for a wrong sum.

    Collective: all ranks meet at the store.
    """
    import torch

    limit = timedelta(seconds=_LIMIT_S)
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        backend, store=store, rank=rank, world_size=size, timeout=limit
    )
    best = float("inf")
    for _ in range(REPEATS):
        values = torch.full((SUM_BYTES // 4,), float(rank + 1), device=device)
        torch.distributed.barrier()
        began = time.perf_counter()
        torch.distributed.all_reduce(values)
        total = float(values[-1])
        best = min(best, time.perf_counter() - began)
        if total != size * (size + 1) / 2 or bool((values != total).any()):
            raise RuntimeError(f"the sum of 1 to {size} came out as {total:g}")
    torch.distributed.destroy_process_group()
    return best


def main(argv: Sequence[str]) -> int:
    """Takes part in a ring as one of its other processes; returns the exit status.

    argv: backend, rank, number of processes, port of the store, process number of the parent.
    """
    backend, rank, size, port, parent = argv
    die_with_parent(int(parent))
    quiet_connections()
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    limit = timedelta(seconds=_LIMIT_S)
    store = TCPStore(LOOPBACK, int(port), is_master=False, timeout=limit, wait_for_workers=False)
    summed_seconds(backend, int(rank), int(size), store)
    return 0
