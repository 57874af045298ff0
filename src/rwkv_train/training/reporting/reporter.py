"""What a reporter can listen to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from rwkv_train.training.progress import (
    BadStepRecord,
    EpochRecord,
    Progress,
    RollbackRecord,
    StepRecord,
)
from rwkv_train.training.reporting.validation_record import ValidationRecord


class Reporter:
    """Someone who shows or writes what happens; hears nothing unless it overrides a method."""

    # It has failed to write before (a full disk).
    is_troubled = False

    def on_step(self, record: StepRecord, progress: Progress) -> None:
        """After every optimizer step."""

    def on_bad_step(self, record: BadStepRecord) -> None:
        """After a step that was left out."""

    def on_rollback(self, record: RollbackRecord) -> None:
        """After the run went back to an earlier state."""

    def on_epoch(self, record: EpochRecord) -> None:
        """At the end of a mini-epoch, and of the unfinished one a run ends in."""

    def on_validation(self, record: ValidationRecord) -> None:
        """After a validation."""

    def on_save(self, path: str) -> None:
        """After a checkpoint was written to `path`."""

    def close(self) -> None:
        """At the end, also after an error."""


def tell(reporters: Iterable[Reporter], call: Callable[[Reporter], None]) -> None:
    """Calls every reporter; one that cannot write says so once and does not end the run."""
    for reporter in reporters:
        try:
            call(reporter)
        except OSError as error:
            if not reporter.is_troubled:
                reporter.is_troubled = True
                print(
                    f"\nWARNING: {type(reporter).__name__} cannot write: "
                    f"{error.strerror or error}; training goes on without it",
                    file=sys.stderr,
                    flush=True,
                )
