"""One of a pair of processes that train together, run after run, without being started anew.

    LOCAL_RANK=R python -m tests.training.mode_worker LOG

Reads command lines of train.py from stdin, a JSON list a line, and answers each with its exit
status, a line on stdout. What the runs print goes to the file LOG. The processes meet at
MASTER_ADDR:MASTER_PORT in their first run, and the process group lives on to the next.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from queue import Empty, Queue
from socket import socket
from threading import Thread

import train

ROOT = Path(__file__).parents[2]
SECONDS_PER_RUN = 240


def serve(log: Path) -> None:
    """Trains until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    with log.open("a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for line in sys.stdin:
        try:
            status = train.main(json.loads(line))
        except BaseException:
            traceback.print_exc()
            status = -1
        sys.stdout.flush()
        gc.collect()
        print(status, file=answers, flush=True)


class Pair:
    """Two workers; a run that fails or hangs ends them, and the next one starts others."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[str]] = []
        self._answers: list[Queue[str]] = []

    def run(self, argv: list[str]) -> tuple[list[int | None], str]:
        """The exit statuses of both processes, None for one that did not end, and their output."""
        if not self._processes:
            self._start()
        before = [log.stat().st_size if log.exists() else 0 for log in self._logs]
        for process in self._processes:
            process.stdin.write(json.dumps(argv) + "\n")
            process.stdin.flush()
        statuses = [self._status(queue) for queue in self._answers]
        printed = "".join(
            log.read_bytes()[start:].decode(errors="replace")
            for log, start in zip(self._logs, before)
        )
        if any(status not in (0, 2) for status in statuses):
            self.close()
        return statuses, printed

    def close(self) -> None:
        """Ends the workers."""
        for process in self._processes:
            process.kill()
            process.communicate()
        self._processes, self._answers = [], []

    @property
    def _logs(self) -> list[Path]:
        return [self._folder / f"rank{rank}.log" for rank in (0, 1)]

    def _start(self) -> None:
        with socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank in (0, 1):
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.training.mode_worker", str(self._logs[rank])],
                cwd=ROOT,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "LOCAL_RANK": str(rank),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                },
            )
            queue: Queue[str] = Queue()
            Thread(
                target=lambda p=process, q=queue: [q.put(line) for line in p.stdout], daemon=True
            ).start()
            self._processes.append(process)
            self._answers.append(queue)

    @staticmethod
    def _status(queue: Queue[str]) -> int | None:
        try:
            return int(queue.get(timeout=SECONDS_PER_RUN))
        except Empty:
            return None


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
