"""Locks that other runs have left, and processes that hold one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rwkv_train.training.start import run_lock
from rwkv_train.training.start.run_lock import LOCK_FILE
from tests.checkout import ROOT

# Takes the lock, forks a child that outlives it as a loader worker does, says so, and stays.
HOLDER = """
import os, sys
from pathlib import Path
from rwkv_train.training.start.run_lock import RunLock
with RunLock(Path(sys.argv[1])):
    if os.fork() == 0:
        sys.stdin.read()
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Starts a process that has the lock of a folder."""
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder)],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leave_lock(folder: Path, process: int, host: str) -> None:
    text = json.dumps({"process": process, "host": host, "since": "2024-02-03 04:05:06"})
    (folder / LOCK_FILE).write_text(text)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life every 50 ms; half a second of silence is death."""
    for name, seconds in {"HEARTBEAT": 0.05, "STALE": 0.5, "LOOK": 0.01, "SETTLE": 0.05}.items():
        monkeypatch.setattr(run_lock, name, seconds)
