"""torchrun goes on with the machines that are left, and with one that comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from socket import socket

import pytest

from tests.checkout import ROOT
from tests.training.runs import loss_steps, losses, start

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

STEPS = 150


class Machines:
    """Agents of torchrun, each with one process; two of them are a run of one machine each."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        self._folder, self._command = folder, command
        self._started: list[subprocess.Popen[bytes]] = []
        with socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]

    def start(self) -> subprocess.Popen[bytes]:
        """Starts a machine; the first one holds the place where they meet."""
        number = len(self._started)
        conf = f"is_host={int(number == 0)},last_call_timeout=3,keep_alive_interval=1"
        words = [
            *("--nnodes", "1:2", "--nproc_per_node", "1", "--max_restarts", "5"),
            *("--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{self._port}"),
            *("--rdzv_id", "run", "--rdzv_conf", conf, "--monitor_interval", "0.5"),
        ]
        with (self._folder / f"machine{number}.log").open("wb") as log:
            agent = subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", *words, *self._command],
                cwd=ROOT,
                env={**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._started.append(agent)
        return agent

    def lose(self, agent: subprocess.Popen[bytes]) -> None:
        """Kills a machine: the agent first, which would else tell the others."""
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
        for process in [agent.pid, *map(int, children)]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        agent.wait()

    def printed(self, number: int) -> str:
        """What a machine has printed so far."""
        return (self._folder / f"machine{number}.log").read_text(errors="replace")

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Returns once it holds; fails if the first machine ends before."""
        while not condition():
            assert self._started[0].poll() is None, self.printed(0)
            time.sleep(0.2)

    def end(self) -> None:
        """Kills whatever still runs."""
        for agent in self._started:
            if agent.poll() is None:
                self.lose(agent)


def test_a_lost_machine_is_done_without_until_it_comes_back(
    flags: Callable[..., list[str]], tmp_path: Path
):
    out, hurry = tmp_path / "out", tmp_path / "hurry"
    # Of so low a rate that a loss is told by its samples, not by the rounding of steps before.
    rate = {"lr_init": "1e-5", "lr_final": "1e-5"}
    run = {"exit_tokens": STEPS * 4 * 32, "epoch_steps": STEPS, "save_every_steps": 5, **rate}
    given = flags(**run, devices=None, micro_bsz=2, strategy="ddp", hang_timeout=30)
    machines = Machines(tmp_path, ["-m", "tests.launch.in_paces", "1", str(hurry), *given])

    def steps() -> int:
        return len(loss_steps(out)) if (out / "metrics.jsonl").exists() else 0

    try:
        first, second = machines.start(), machines.start()
        machines.wait_until(lambda: steps() > 6)
        machines.lose(second)
        machines.wait_until(lambda: "processes   1\n" in machines.printed(0))
        alone = steps()
        machines.wait_until(lambda: steps() > alone + 6)
        third = machines.start()
        machines.wait_until(lambda: machines.printed(0).count("processes   2, ") == 2)
        hurry.touch()
        assert (first.wait(), third.wait()) == (0, 0), machines.printed(0)
    finally:
        machines.end()
    printed = machines.printed(0)
    assert "rank 1 on " in printed and "it was killed, or the connection broke" in printed
    batches = [line for line in printed.splitlines() if line.startswith("  batch ")]
    assert [line.partition(" = ")[0].split(maxsplit=1)[1] for line in batches] == [
        "4 samples (2 x 2)",
        "4 samples (1 x 2 x 2 accumulated)",
        "4 samples (2 x 2)",
    ]
    assert "kept for other processes" in printed
    # The same samples in the same order, whoever read them.
    whole = start("train.py", *flags(**run, micro_bsz=4, proj_dir=tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    expected = losses(tmp_path / "whole")
    assert loss_steps(out) == list(range(STEPS)) == list(expected)
    assert losses(out) == pytest.approx(expected, rel=1e-4)
