"""What a reporter can listen to."""

from __future__ import annotations

from src.training.progress import EpochRecord, Progress, StepRecord


class Reporter:
    """Someone who shows or writes what happens; hears nothing unless it overrides a method."""

    def on_step(self, record: StepRecord, progress: Progress) -> None:
        """After every optimizer step."""

    def on_epoch(self, record: EpochRecord) -> None:
        """At the end of a mini-epoch, and of the unfinished one a run ends in."""

    def on_validation(self, step: int, loss: float) -> None:
        """After a validation that followed `step`; loss in nats per token."""

    def on_save(self, path: str) -> None:
        """After a checkpoint was written to `path`."""

    def close(self) -> None:
        """At the end, also after an error."""
