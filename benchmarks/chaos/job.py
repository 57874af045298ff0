"""A real run under torch's elastic agents, one a host, each kept alive by a supervisor.

The agents are what `torchrun` starts. They are forked from this process, which has imported torch,
so that a start costs no import; workers are forked from the agents. The supervisor does what a
service manager does: it starts an agent that has ended once more, when nothing of it is left.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from benchmarks.chaos.network import Network
from benchmarks.kill_test import fork
from rwkv_train.training import run
from rwkv_train.training.__main__ import main

# torchrun's own limit on restarts is no part of what is tried here.
_RESTARTS = 100_000
# A stopped worker does not answer SIGTERM: its agent waits so long before SIGKILL.
_SHUTDOWN_SECONDS = 5
_BACKOFF_SECONDS = 0.5
_PORT = 29_400
assert run, "imported here, so that the processes that are forked need not"


class Shape(NamedTuple):
    """How many hosts, workers on each, and hosts that the job may go on with."""

    hosts: int
    workers: int
    fewest_hosts: int


class Job:
    """The agents of a run until it has finished, its output in `folder`/host-N.log.

    flags: of the trainer. port: of the agents' rendezvous, which the first host keeps.
    """

    def __init__(
        self, network: Network, shape: Shape, flags: Sequence[str], folder: Path, port: int = _PORT
    ) -> None:
        self._network = network
        self._shape = shape
        self._flags = [*flags]
        self._folder = folder
        self._port = port
        self._agents: dict[int, int] = {}
        self._waiting: dict[int, float] = {}
        self.finished: set[int] = set()
        self.endings: Counter[int] = Counter()

    def tend(self) -> bool:
        """Starts agents that have ended once more; returns whether all have finished."""
        for host in range(self._shape.hosts):
            if host in self.finished:
                continue
            if host in self._agents:
                self._look_after(host)
            elif time.monotonic() >= self._waiting.get(host, 0.0):
                self._agents[host] = self._start(host)
        return len(self.finished) == self._shape.hosts

    def workers(self, host: int) -> list[int]:
        """Returns the processes of a host but for its agent, which may have none yet."""
        agent = self._agents.get(host)
        return [] if agent is None else [p for p in _group(agent) if p != agent]

    def agent(self, host: int) -> int | None:
        """Returns the process of a host's agent, None while there is none."""
        return self._agents.get(host)

    def strike(self, processes: Sequence[int], number: int) -> None:
        """Sends a signal to processes, some of which may have ended."""
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def strike_host(self, host: int) -> None:
        """Kills all that runs on a host, at once."""
        agent = self._agents.get(host)
        if agent is not None:
            self.strike(_group(agent), signal.SIGKILL)

    def close(self) -> None:
        """Ends what runs."""
        for host, agent in self._agents.items():
            self.strike_host(host)
            os.waitpid(agent, 0)
        self._agents.clear()

    def _look_after(self, host: int) -> None:
        agent = self._agents[host]
        ended, status = os.waitpid(agent, os.WNOHANG)
        if not ended:
            return
        # As a service manager does: workers that have lost their agent belong to nobody.
        self.strike(_group(agent), signal.SIGKILL)
        del self._agents[host]
        code = os.waitstatus_to_exitcode(status)
        self.endings[code] += 1
        if code == 0:
            self.finished.add(host)
        else:
            self._waiting[host] = time.monotonic() + _BACKOFF_SECONDS

    def _start(self, host: int) -> int:
        return fork(lambda: self._run_agent(host), self._folder / f"host-{host}.log")

    def _run_agent(self, host: int) -> int:
        """Returns the exit status of an agent: that of torchrun in the recipe for hosts."""
        self._network.enter(host)
        # Agents that share a store of theirs with their workers race for it when they restart.
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        config = LaunchConfig(
            min_nodes=self._shape.fewest_hosts,
            max_nodes=self._shape.hosts,
            nproc_per_node=self._shape.workers,
            run_id="chaos",
            rdzv_backend="c10d",
            rdzv_endpoint=f"{self._network.address(0)}:{self._port}",
            rdzv_configs={"is_host": host == 0, "timeout": 60},
            max_restarts=_RESTARTS,
            monitor_interval=0.1,
            start_method="fork",
            local_addr=self._network.address(host),
            shutdown_timeout=_SHUTDOWN_SECONDS,
            logs_specs=DefaultLogsSpecs(),
        )
        try:
            elastic_launch(config, _work)(self._flags)
        # Whatever ends an agent is the supervisor's business, and its log tells it.
        except Exception as error:
            print(f"agent of host {host}: {type(error).__name__}: {error}", file=sys.stderr)
            return 1
        return 0


def _work(flags: Sequence[str]) -> None:
    """Runs one rank."""
    status = main([*flags])
    if status != 0:
        sys.exit(status)


def _group(leader: int) -> list[int]:
    """Returns the processes of a group, its leader among them, that are no zombies."""
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with suppress(OSError, IndexError):
            # Behind the name: state, parent, group.
            fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == leader and fields[0] != "Z":
                found.append(int(entry.name))
    return found
