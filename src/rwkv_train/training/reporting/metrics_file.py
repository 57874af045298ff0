"""proj_dir/metrics.jsonl: one JSON object per optimizer step, validation and mishap.

proj_dir/times.jsonl: one per start and end, how long they took.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from rwkv_train.files import write_atomically
from rwkv_train.report.run_records import METRICS_FILE, TIMES_FILE, read_metrics, read_times
from rwkv_train.training.live.live_records import SampleRecord, TaskRecord
from rwkv_train.training.progress import Progress
from rwkv_train.training.reporting.records import (
    BadStepRecord,
    EmptyStepRecord,
    EndRecord,
    RollbackRecord,
    SlowRanksRecord,
    StartRecord,
    StepRecord,
)
from rwkv_train.training.reporting.reporter import Reporter
from rwkv_train.training.reporting.validation_record import ValidationRecord

# Seconds that add up to the life of a run.
SPANS = ("start_up_seconds", "lost_seconds", "seconds", "ending_seconds")


class MetricsFile(Reporter):
    """Appends to metrics.jsonl and times.jsonl; a resumed run neither repeats nor skips a step.

    tokens: seen before the first step of this start.
    """

    label = METRICS_FILE

    def __init__(self, folder: Path, tokens: int) -> None:
        steps = _drop_after(folder / METRICS_FILE, read_metrics(folder), tokens)
        spans = _drop_after(folder / TIMES_FILE, read_times(folder), tokens)
        self._lost_seconds = steps + spans
        self._file = (folder / METRICS_FILE).open("a", encoding="utf-8")
        self._times = folder / TIMES_FILE

    def on_start(self, record: StartRecord) -> None:
        """Writes how long the start took, and what of the run before is done again."""
        self._write_time(asdict(replace(record, lost_seconds=self._lost_seconds)))

    def on_step(self, record: StepRecord, progress: Progress) -> None:
        """Writes the step's record."""
        self._write(record.values())

    def on_bad_step(self, record: BadStepRecord) -> None:
        """Writes which step was skipped, and why."""
        self._write(asdict(record))

    def on_empty_step(self, record: EmptyStepRecord) -> None:
        """Writes which step had nothing to learn."""
        self._write(asdict(record))

    def on_rollback(self, record: RollbackRecord) -> None:
        """Writes to which state the run rolled back."""
        self._write(asdict(record))

    def on_slow_ranks(self, record: SlowRanksRecord) -> None:
        """Writes which machines are slow from here on."""
        self._write(asdict(record))

    def on_validation(self, record: ValidationRecord) -> None:
        """Writes the validation's record."""
        self._write(record.values())

    def on_tasks(self, record: TaskRecord) -> None:
        """Writes the figures of tasks."""
        self._write(record.values())

    def on_samples(self, record: SampleRecord) -> None:
        """Writes the texts."""
        self._write(record.values())

    def on_end(self, record: EndRecord) -> None:
        """Writes how long the run took behind its last step."""
        self._write_time(asdict(record))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, values: dict[str, Any]) -> None:
        self._file.write(json.dumps(values) + "\n")
        # A reader, or a crash, sees every finished step.
        self._file.flush()

    def _write_time(self, values: dict[str, Any]) -> None:
        # Twice a start: not worth an open file.
        with self._times.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


def _drop_after(path: Path, records: list[dict[str, Any]], tokens: int) -> float:
    """Removes of a file's records those of what a resumed run is going to do again.

    Returns the seconds that it took. Tokens tell it also when the batch has changed, and with it
    what a step is.
    """
    kept = list(takewhile(lambda r: r.get("tokens", 0) <= tokens, records))
    if path.is_file():
        # Rewritten as a whole: a crash in between leaves the old file or the new one.
        text = "".join(json.dumps(r) + "\n" for r in kept)
        write_atomically(path, text.encode())
    spans = [r.get(name, 0.0) for r in records[len(kept) :] for name in SPANS]
    return float(sum(span for span in spans if type(span) in (int, float)))
