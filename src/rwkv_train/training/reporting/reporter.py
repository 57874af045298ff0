"""The events that a reporter can listen to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from rwkv_train.errors import short_reason
from rwkv_train.training.live.live_records import SampleRecord, TaskRecord
from rwkv_train.training.progress import Progress
from rwkv_train.training.reporting.records import (
    BadStepRecord,
    EmptyStepRecord,
    EndRecord,
    EpochRecord,
    FaultRecord,
    LivesRecord,
    RollbackRecord,
    SlowRanksRecord,
    StartRecord,
    StepRecord,
)
from rwkv_train.training.reporting.validation_record import ValidationRecord


class Reporter:
    """Someone who shows or writes what happens; hears nothing unless it overrides a method."""

    # What it writes or draws, as people know it.
    label = "a log"
    # It has failed to write before (a full disk), and the user knows.
    has_failed = False

    def on_start(self, record: StartRecord) -> None:
        """Receives the start, before its first step."""

    def on_step(self, record: StepRecord, progress: Progress) -> None:
        """Receives every optimizer step that was taken."""

    def on_bad_step(self, record: BadStepRecord) -> None:
        """Receives every step that was skipped because it was bad."""

    def on_empty_step(self, record: EmptyStepRecord) -> None:
        """Receives every step that was skipped because there was nothing to learn."""

    def on_rollback(self, record: RollbackRecord) -> None:
        """Receives every return to an earlier state."""

    def on_slow_ranks(self, record: SlowRanksRecord) -> None:
        """Receives the slow machines whenever they are others than before."""

    def on_epoch(self, record: EpochRecord) -> None:
        """Receives every mini-epoch at its end, and the unfinished one a run ends in."""

    def on_validation(self, record: ValidationRecord) -> None:
        """Receives every validation."""

    def on_tasks(self, record: TaskRecord) -> None:
        """Receives the figures of tasks."""

    def on_samples(self, record: SampleRecord) -> None:
        """Receives texts that the model has written."""

    def on_save_postponed(self, step: int) -> None:
        """Receives the steps done at which a save was due while steps are bad."""

    def on_save(self, path: str) -> None:
        """Receives the path of every checkpoint, once it is written."""

    def on_end(self, record: EndRecord) -> None:
        """Receives what came behind the last step of a run that ends by itself."""

    def on_lives(self, record: LivesRecord) -> None:
        """Receives the run's time so far, when a start resumes it and when one ends by itself."""

    def on_fault(self, record: FaultRecord) -> None:
        """Receives why a start ends that has not ended by itself, most often after `close`."""

    def close(self) -> None:
        """Ends the reports; called after an error too."""


def notify(reporters: Iterable[Reporter], call: Callable[[Reporter], None]) -> None:
    """Calls every reporter; one that fails says so once and does not end the run."""
    for reporter in reporters:
        try:
            call(reporter)
        # Anything: what a library of curves raises is no reason to lose a run.
        except Exception as error:
            if not reporter.has_failed:
                reporter.has_failed = True
                warn_lost(reporter.label, error)


def warn_lost(what: str, error: Exception) -> None:
    """Says in one line that a log is not written."""
    print(
        f"\nWARNING: {what} cannot write: {short_reason(error)}; training continues without it",
        file=sys.stderr,
        flush=True,
    )
