"""What a fault is done to: the job, its hosts and disk, and the files of its run."""

from __future__ import annotations

import json
import os
import random
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.disturbance.job import Job
from benchmarks.disturbance.network import Network
from benchmarks.kill_test import Disk
from rwkv_train.checkpoint.names import is_state
from rwkv_train.checkpoint.resume import load_state
from rwkv_train.errors import CheckpointError
from rwkv_train.report.run_lives import read_lives
from rwkv_train.report.run_records import METRICS_FILE, metrics_record

_TAIL_BYTES = 4096


@dataclass
class Scene:
    """A job that is being disturbed.

    run: its folder, on the disk. tokens: of a step. untold: steps whose records the faults
    themselves have destroyed, so that nobody may ask for them. blackouts: steps that were done when
    nothing could be recorded any more for a while.
    """

    job: Job
    network: Network
    disk: Disk
    run: Path
    hosts: int
    tokens: int
    rng: random.Random
    untold: set[int] = field(default_factory=set)
    blackouts: list[int] = field(default_factory=list)

    def any_host(self) -> int:
        """Returns a random host."""
        return self.rng.randrange(self.hosts)

    def any_worker(self) -> list[int]:
        """Returns a random worker of all hosts, [] while there is none."""
        workers = [process for host in range(self.hosts) for process in self.job.workers(host)]
        return [self.rng.choice(workers)] if workers else []

    def steps_done(self) -> int:
        """Returns the steps behind the newest record of metrics.jsonl that can be read."""
        try:
            with (self.run / METRICS_FILE).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                lines = file.read().splitlines()
        except OSError:
            return 0
        for line in reversed(lines):
            record = metrics_record(line)
            if record is not None and "loss" in record:
                return int(record["step"]) + 1
        return 0

    def starts(self) -> dict[int, tuple[int, bool]]:
        """Returns of every life's number (steps where it resumed, whether it came to a step)."""
        found: dict[int, tuple[int, bool]] = {}
        for line in read_lives(self.run):
            if line["event"] in ("start", "steps"):
                found[line["life"]] = (line["tokens"] // self.tokens, line["event"] == "steps")
        return found

    def states(self) -> list[Path]:
        """Returns the training states of the run, the newest last."""
        return sorted(
            (path for path in self.run.glob("rwkv-*") if is_state(path.name)),
            key=lambda path: path.stat().st_mtime_ns,
        )

    def newest_good_state(self) -> int:
        """Returns the steps of the newest state that can be read and verified; 0: none can."""
        steps = [0]
        for path in self.states():
            try:
                steps.append(int(load_state(path)["step"]))
            except (CheckpointError, OSError):
                # Damaged by a fault, or deleted meanwhile since newer ones are there.
                continue
        return max(steps)

    def damage_line(self, name: str) -> None:
        """Destroys a random line of a file of records, in its place."""
        path = self.run / name
        content = path.read_bytes()
        lines = content.splitlines(keepends=True)
        if not lines:
            return
        number = self.rng.randrange(len(lines))
        begin = sum(map(len, lines[:number]))
        # Another fault may have been here before, and not every record has a step.
        with suppress(ValueError, KeyError):
            if name == METRICS_FILE:
                self.untold.add(int(json.loads(lines[number])["step"]))
        with path.open("r+b") as file:
            file.seek(begin)
            file.write(b"#" * max(1, len(lines[number]) // 2))
