"""Starts runs in processes of their own, and says what they left."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from socket import socket

import torch

from rwkv_train.training.reporting.metrics_file import read_metrics
from tests.checkout import ROOT
from tests.training.warm_start import Server

Ended = subprocess.CompletedProcess[str]


@cache
def server() -> Server:
    """The one that starts this process's runs; its start costs what it saves from the second."""
    made = Server()
    atexit.register(made.close)
    return made


def ranks_environment(ranks: int) -> list[dict[str, str]]:
    """What each of these processes has to be told to meet the others, as torchrun tells it."""
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    world = {**place, "WORLD_SIZE": str(ranks)}
    return [{**world, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def start(
    program: str,
    *arguments: str,
    ranks: int = 1,
    environment: Mapping[str, str] | None = None,
    by: Server | None = None,
) -> Ended:
    """Runs a module or a script of the project to its end, in a session of its own.

    ranks: above 1, that many processes are started, told their ranks; with 1 it is the program
    that starts its others. by: who starts them, else `server()`. The exit status is the first one
    that is not 0, the output that of all.
    """
    given = ranks_environment(ranks) if ranks > 1 else [{}]
    calls = [(arguments, {**(environment or {}), **rank}) for rank in given]
    statuses, out, err = start_all(program, calls, by)
    status = next((status for status in statuses if status != 0), 0)
    return Ended([program, *arguments], status, out, err)


def start_all(
    program: str, calls: Sequence[tuple[Sequence[str], Mapping[str, str]]], by: Server | None = None
) -> tuple[list[int], str, str]:
    """Runs a program with several arguments and environments at once, each in a session.

    Returns all exit statuses, and what they printed on stdout and stderr together.
    """
    by = by or server()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with Path(os.devnull).open() as nothing:
            streams = [file.fileno() for file in (nothing, out, err)]
            processes = [
                by.start(program, arguments, {**os.environ, **more}, streams)
                for arguments, more in calls
            ]
        try:
            statuses = [by.wait(process) for process in processes]
        except BaseException:
            # A Ctrl-C does not reach their sessions.
            for process in processes:
                with suppress(ProcessLookupError):
                    os.killpg(process, signal.SIGKILL)
            raise
        printed = []
        for file in (out, err):
            file.seek(0)
            printed.append(file.read().decode(errors="replace"))
    return statuses, printed[0], printed[1]


def start_cold(*arguments: str) -> Ended:
    """Runs Python with these arguments from nothing, as a user would."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        text=True,
        capture_output=True,
        start_new_session=True,
    )


def losses(folder: Path) -> dict[int, float]:
    """step -> loss in metrics.jsonl."""
    return {r["step"]: r["loss"] for r in read_metrics(folder) if "loss" in r}


def loss_steps(folder: Path) -> list[int]:
    """The steps in metrics.jsonl in file order, repetitions included."""
    return [r["step"] for r in read_metrics(folder) if "loss" in r]


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .pth file."""
    return torch.load(path, weights_only=True)


def assert_same_weights(one: Path, other: Path) -> None:
    """Fails unless both files hold bitwise equal tensors under equal names."""
    a, b = weights(one), weights(other)
    assert list(a) == list(b)
    different = [key for key in a if not torch.equal(a[key], b[key])]
    assert not different, f"{len(different)} of {len(a)} tensors differ, first {different[:3]}"
