"""One of some processes that train together, run after run, without being started anew.

    LOCAL_RANK=R python -m tests.training.mode_worker LOG

Reads command lines of train.py from stdin, a JSON list a line, and answers each with its exit
status, a line on stdout. What the runs print goes to the file LOG. The processes meet at
MASTER_ADDR:MASTER_PORT in their first run, and the process group lives on to the next.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import traceback
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import NamedTuple, TextIO

import train
from tests.frame_memory import with_frame_memory
from tests.training.runs import ranks_environment, server

SECONDS_PER_RUN = 240


def serve(log: Path) -> None:
    """Trains until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    with log.open("a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for line in sys.stdin:
        try:
            status = with_frame_memory(partial(train.main, json.loads(line)))
        except BaseException:
            traceback.print_exc()
            status = -1
        sys.stdout.flush()
        gc.collect()
        # What a first run has imported stays; every later collection would walk through it.
        gc.freeze()
        print(status, file=answers, flush=True)


class Worker(NamedTuple):
    """One of them: its process, where its command lines go, and the lines it answers."""

    process: int
    requests: TextIO
    answers: Queue[str]


class Workers:
    """Workers that train together, two by default.

    A run that fails or hangs ends them, and the next one starts others.
    """

    def __init__(self, folder: Path, ranks: int = 2) -> None:
        self._folder = folder
        self._ranks = ranks
        self._workers: list[Worker] = []

    def run(self, argv: list[str]) -> tuple[list[int | None], str]:
        """The exit statuses of all processes, None for one that did not end, and their output."""
        if not self._workers:
            self._start()
        before = [log.stat().st_size if log.exists() else 0 for log in self._logs]
        for worker in self._workers:
            # One that has died is told of by its missing status.
            with suppress(BrokenPipeError):
                worker.requests.write(json.dumps(argv) + "\n")
                worker.requests.flush()
        statuses = [self._status(worker.answers) for worker in self._workers]
        printed = "".join(
            log.read_bytes()[start:].decode(errors="replace")
            for log, start in zip(self._logs, before)
        )
        if any(status not in (0, 2) for status in statuses):
            self.close()
        return statuses, printed

    def close(self) -> None:
        """Ends the workers."""
        for worker in self._workers:
            os.kill(worker.process, signal.SIGKILL)
            server().wait(worker.process)
            with suppress(BrokenPipeError):
                worker.requests.close()
        self._workers = []

    @property
    def _logs(self) -> list[Path]:
        return [self._folder / f"rank{rank}.log" for rank in range(self._ranks)]

    def _start(self) -> None:
        for log, environment in zip(self._logs, ranks_environment(self._ranks)):
            requests, our_requests = os.pipe()
            our_answers, answers = os.pipe()
            streams = [requests, answers, 2]
            process = server().start(
                "tests.training.mode_worker", [str(log)], {**os.environ, **environment}, streams
            )
            os.close(requests)
            os.close(answers)
            queue: Queue[str] = Queue()
            reader = os.fdopen(our_answers)
            Thread(
                target=lambda r=reader, q=queue: [q.put(line) for line in r], daemon=True
            ).start()
            self._workers.append(Worker(process, os.fdopen(our_requests, "w"), queue))

    @staticmethod
    def _status(queue: Queue[str]) -> int | None:
        try:
            return int(queue.get(timeout=SECONDS_PER_RUN))
        except Empty:
            return None


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
