"""Tells the reporters what happens around the steps of one start of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rwkv_train.config.run_length import RunLength
from rwkv_train.goodput import goodput
from rwkv_train.report.run_lives import LifeAccount
from rwkv_train.training.bad_steps.step_veto import StepOutcome
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
from rwkv_train.training.reporting.reporter import Reporter, notify
from rwkv_train.training.step_meter import StepMeter


class StepReports:
    """Makes the records of a start, which begins with `first_step` steps done.

    meter: measures what the figures of a step need. account: of the run's time until this start.
    """

    def __init__(
        self,
        length: RunLength,
        first_step: int,
        meter: StepMeter,
        reporters: Sequence[Reporter],
        account: LifeAccount,
    ) -> None:
        self._length = length
        self._first_epoch = first_step // length.epoch_steps
        self.meter = meter
        self.reporters = reporters
        self._account = account
        self._last: StepRecord | None = None

    def begin(self, progress: Progress) -> None:
        """Tells that steps begin; the run's clock starts here."""
        started = self.meter.start()
        self._account.begin_steps(started.seconds, started.reload)
        record = StartRecord(progress.step, self._tokens(progress.step), started.seconds)
        notify(self.reporters, lambda reporter: reporter.on_start(record))
        if self._account.lives > 1:
            self._tell_lives()

    def step(
        self,
        progress: Progress,
        outcome: StepOutcome,
        rates: tuple[float, float],
        loop_share: float | None,
        grad_norms: Mapping[str, float] | None,
    ) -> None:
        """Tells of a step that was taken and counted; rates: learning rate and weight decay."""
        lr, weight_decay = rates
        figures = self.meter.figures()
        self._account.add_step(figures)
        record = StepRecord(
            step=progress.step - 1,
            loss=outcome.loss,
            lr=lr,
            weight_decay=weight_decay,
            grad_norm=outcome.grad_norm,
            tokens=self._tokens(progress.step),
            loop_share=loop_share,
            goodput=goodput(self._account.seconds),
            grad_norms=grad_norms,
            **figures,
        )
        self._last = record
        notify(self.reporters, lambda reporter: reporter.on_step(record, progress))

    def empty_step(self, progress: Progress) -> None:
        """Tells of a step with nothing to learn, which was counted."""
        step = progress.step - 1
        first, last = self._length.samples(step)
        record = EmptyStepRecord(step, [first, last], self._tokens(progress.step))
        notify(self.reporters, lambda reporter: reporter.on_empty_step(record))

    def bad_step(self, record: BadStepRecord) -> None:
        """Tells of a step that was skipped."""
        notify(self.reporters, lambda reporter: reporter.on_bad_step(record))

    def rollback(self, record: RollbackRecord) -> None:
        """Tells of a return to an earlier state."""
        notify(self.reporters, lambda reporter: reporter.on_rollback(record))

    def slow_ranks(self, progress: Progress, lines: list[str] | None) -> None:
        """Tells of slow machines, a line each; None: nothing has changed."""
        if lines is not None:
            record = SlowRanksRecord(progress.step - 1, lines, self._tokens(progress.step))
            notify(self.reporters, lambda reporter: reporter.on_slow_ranks(record))

    def epoch(self, progress: Progress) -> None:
        """Tells of the mini-epoch that ends here, or that the run ends in, if it has a step."""
        last = self._last
        if progress.epoch_loss_steps and last is not None:
            epoch = (progress.step - 1) // self._length.epoch_steps
            record = EpochRecord(epoch, epoch - self._first_epoch, progress.epoch_loss, last)
            notify(self.reporters, lambda reporter: reporter.on_epoch(record))

    def save_postponed(self, step: int) -> None:
        """Tells that a save waits until steps are good again."""
        notify(self.reporters, lambda reporter: reporter.on_save_postponed(step))

    def saves(self, paths: Sequence[Path]) -> None:
        """Tells of files that were written."""
        for path in map(str, paths):
            self._saved(path)

    def end(self, progress: Progress) -> None:
        """Tells how long what came behind the last step has taken, which is all that is left."""
        spent = self.meter.clock.take()
        record = EndRecord(
            progress.step - 1,
            self._tokens(progress.step),
            spent.seconds,
            spent.share("save"),
            spent.share("validation"),
        )
        self._account.end_steps(asdict(record))
        notify(self.reporters, lambda reporter: reporter.on_end(record))
        self._tell_lives()

    def fault(self, message: str, status: int) -> None:
        """Tells why this start ends, if its work has not ended it; last of all."""
        record = FaultRecord(message, status)
        notify(self.reporters, lambda reporter: reporter.on_fault(record))

    def close(self) -> None:
        """Ends all reports, once."""
        notify(self.reporters, lambda reporter: reporter.close())
        self.reporters = ()

    def _tell_lives(self) -> None:
        account = self._account
        record = LivesRecord(account.lives, account.lost_steps, account.seconds)
        notify(self.reporters, lambda reporter: reporter.on_lives(record))

    def _saved(self, path: str) -> None:
        notify(self.reporters, lambda reporter: reporter.on_save(path))

    def _tokens(self, steps: int) -> int:
        return steps * self._length.tokens_per_step
