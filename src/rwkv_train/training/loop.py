"""What happens around every optimizer step, in order: rates, record, mini-epoch, validation, end.

One Lightning callback; Lightning sees the whole run as a single epoch, and a mini-epoch is only a
unit for saving, logging and naming.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch

from rwkv_train.training.bad_steps.detector import Guard
from rwkv_train.training.bad_steps.recovery import BadSteps
from rwkv_train.training.bad_steps.step_veto import Flags, Outcome, StepGate
from rwkv_train.training.checkpointing.saver import Saver
from rwkv_train.training.checkpointing.training_state import Part, restore_state
from rwkv_train.training.distributed.collectives import gather_objects, raise_together
from rwkv_train.training.optim.optimizer import set_rates
from rwkv_train.training.optim.schedule import Schedule, learning_rate, weight_decay
from rwkv_train.training.progress import EpochRecord, Progress, StepRecord
from rwkv_train.training.reporting.reporter import Reporter, tell
from rwkv_train.training.signals import StopRequest

if TYPE_CHECKING:
    from rwkv_train.config.resolved import ResolvedConfig
    from rwkv_train.config.run_length import RunLength
    from rwkv_train.training.module import TrainingModule
    from rwkv_train.training.validation import Validator


class Loop(pl.Callback):
    """Drives one run from `progress` to the end of `length`."""

    def __init__(
        self,
        config: ResolvedConfig,
        length: RunLength,
        schedule: Schedule,
        progress: Progress,
        *,
        state: dict[str, Any] | None,
        base: dict[str, Any] | None,
        validator: Validator,
        reporters: list[Reporter],
    ) -> None:
        self._config = config
        self._length = length
        self._schedule = schedule
        self._progress = progress
        self._first_step = progress.step
        self._first_epoch = progress.step // length.epoch_steps
        self._state = state
        self._validator = validator
        self._reporters = reporters
        self._guard = Guard(config.safety)
        # What else the training state holds, by name; the guard goes back in its own way.
        parts: dict[str, Part] = {}
        self._parts = {"guard": self._guard, **parts}
        self._saver = Saver(config, length, self._parts, base)
        self._bad_steps = BadSteps(config, length, self._guard, parts)
        self._gate: StepGate | None = None
        self._save_owed = False
        self._last: StepRecord | None = None
        self._step_began = 0.0
        self.stop = StopRequest()

    def on_train_start(self, trainer: pl.Trainer, pl_module: TrainingModule) -> None:
        """Seeds dropout, then restores the training state: strategy and optimizer exist now."""
        torch.manual_seed(self._config.train.random_seed + 1 + trainer.global_rank)
        if self._state is not None:
            restore_state(trainer, pl_module, self._state, self._parts)
            # three times the model's size in fp32
            self._state = None
        self._gate = StepGate(
            trainer, pl_module, self._guard, lambda: self._flags(trainer, pl_module)
        )
        self.stop.listen()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: TrainingModule, batch: Any, batch_idx: int
    ) -> None:
        """Sets rate and decay before the first micro batch of a step."""
        if pl_module.stop_requested or batch_idx % self._config.train.accumulate_grad_batches:
            return
        if self._step_began == 0.0:
            self._step_began = time.perf_counter()
        pl_module.begin_step()
        step = self._progress.step
        set_rates(trainer.optimizers[0], self._rate(step), weight_decay(self._schedule, step))

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: TrainingModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """After the last micro batch: records the step, then whatever is due at this step."""
        if (batch_idx + 1) % self._config.train.accumulate_grad_batches:
            return
        assert self._gate is not None
        outcome = self._gate.take_outcome()
        self._act_together(trainer, pl_module, outcome.flags)
        if outcome.fault is None:
            self._count(outcome)
        else:
            self._leave_out(trainer, pl_module, outcome)
        self._report_saves()
        due_epoch = self._progress.step % self._length.epoch_steps == 0
        saved = due_epoch and self._end_epoch(trainer, pl_module)
        every = self._config.train.val_every
        if every is not None and self._progress.step % every == 0:
            self._validate(trainer, pl_module)
        self._save_owed |= outcome.flags.save_due
        if self._save_owed and not saved and not self._is_ending(pl_module):
            self._save_between(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: TrainingModule) -> None:
        """Saves the end of the run, or the unfinished mini-epoch it pauses in."""
        progress, length = self._progress, self._length
        if self._gate is None or progress.step == self._first_step:
            return
        if length.completes and progress.step == length.total_steps:
            self._announce_epoch_rest()
            self._validate(trainer, pl_module)
            self._saver.save_final(trainer, pl_module, progress)
        elif self._saver.saved_step != progress.step:
            epoch = (progress.step - 1) // length.epoch_steps
            self._announce_epoch_rest()
            self._validate(trainer, pl_module)
            self._saver.save_epoch(trainer, pl_module, progress, epoch, wait=True)
        else:
            self._saver.finish(trainer)
        self._report_saves()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Closes files and bars."""
        self._close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Closes them after an error too, for which Lightning calls no teardown."""
        self._close()

    def _close(self) -> None:
        self._saver.wait(hurry=True)
        self._report_saves()
        self.stop.release()
        tell(self._reporters, lambda reporter: reporter.close())
        self._reporters = []

    def _rate(self, step: int) -> float:
        return learning_rate(self._schedule, step, step - self._progress.ramp_begin)

    def _flags(self, trainer: pl.Trainer, module: TrainingModule) -> Flags:
        """What this rank knows before the optimizer steps."""
        first = trainer.is_global_zero
        return Flags(
            asked_to_stop=self.stop.received is not None,
            data_fault=module.data_fault() is not None,
            save_due=first and self._saver.due(self._progress.step + 1),
            saves_failed=first and self._saver.fault() is not None,
        )

    def _act_together(self, trainer: pl.Trainer, module: TrainingModule, flags: Flags) -> None:
        # A signal or bad data may reach one rank only; all must leave after the same step.
        if flags.data_fault:
            raise_together(trainer.strategy, module.data_fault())
        if flags.saves_failed:
            raise_together(trainer.strategy, self._saver.fault())
        if flags.asked_to_stop:
            numbers = gather_objects(trainer.strategy, self.stop.received)
            self.stop.received = max(filter(None, numbers))
            module.stop_requested = True

    def _count(self, outcome: Outcome) -> None:
        """A step that was taken."""
        step = self._progress.step
        self._progress.add_loss(outcome.loss)
        self._guard.good(outcome.loss)
        now = time.perf_counter()
        seconds, self._step_began = now - self._step_began, now
        record = StepRecord(
            step=step,
            loss=outcome.loss,
            lr=self._rate(step),
            weight_decay=weight_decay(self._schedule, step),
            grad_norm=outcome.grad_norm,
            tokens=(step + 1) * self._length.tokens_per_step,
            tokens_per_second=self._length.tokens_per_step / max(seconds, 1e-9),
        )
        self._last = record
        tell(self._reporters, lambda reporter: reporter.on_step(record, self._progress))

    def _leave_out(self, trainer: pl.Trainer, module: TrainingModule, outcome: Outcome) -> None:
        """A step that was left out; after several in a row the run goes back."""
        record = self._bad_steps.leave_out(trainer, module, outcome, self._progress.step)
        self._progress.leave_out()
        tell(self._reporters, lambda reporter: reporter.on_bad_step(record))
        if self._guard.must_go_back():
            self._saver.wait(hurry=True)
            back = self._bad_steps.go_back(trainer, module, self._progress.step, record.skipped)
            tell(self._reporters, lambda reporter: reporter.on_rollback(back))
            # What is left out from now on must not be forgotten.
            self._save_owed = True
        self._step_began = time.perf_counter()

    def _is_ending(self, module: TrainingModule) -> bool:
        """Whether the run ends after this step, and `on_train_end` saves it."""
        return module.stop_requested or self._progress.step == self._length.total_steps

    def _save_between(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        # A state in the middle of bad steps would be one to go back to.
        if self._guard.bad_in_a_row == 0:
            self._saver.save_between(trainer, module, self._progress)
            self._save_owed = False
            self._step_began = time.perf_counter()

    def _end_epoch(self, trainer: pl.Trainer, module: TrainingModule) -> bool:
        """Reports a finished mini-epoch, validates and saves it if due; True if it was saved."""
        progress, length = self._progress, self._length
        epoch = progress.step // length.epoch_steps - 1
        self._announce_epoch_rest()
        every = self._config.train.epoch_save
        last = length.total_steps is not None and progress.step == length.total_steps
        due = (every > 0 and epoch % every == 0) or (last and not length.completes)
        # The next mini-epoch begins before the state is captured, so that a resumed run agrees.
        progress.begin_epoch()
        due = due and not (last and length.completes)
        if due:
            self._validate(trainer, module)
            self._saver.save_epoch(trainer, module, progress, epoch, wait=False)
            self._save_owed = False
            # Saving is not training: it must not count in the next step's tokens per second.
            self._step_began = time.perf_counter()
        return due

    def _announce_epoch_rest(self) -> None:
        """Reports the mini-epoch that ends here, or that the run ends in; not one left out."""
        if self._progress.epoch_loss_steps and self._last is not None:
            self._announce((self._progress.step - 1) // self._length.epoch_steps, self._last)

    def _announce(self, epoch: int, last: StepRecord) -> None:
        record = EpochRecord(epoch, epoch - self._first_epoch, self._progress.epoch_loss, last)
        tell(self._reporters, lambda reporter: reporter.on_epoch(record))

    def _report_saves(self) -> None:
        for path in self._saver.take_written():
            tell(self._reporters, lambda reporter, path=path: reporter.on_save(str(path)))

    def _validate(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Before saving, so that the state knows the best loss; not when asked to leave."""
        if module.stop_requested:
            return
        self._validator.run(trainer, module, self._progress, self._saver, self._reporters)
        self._step_began = time.perf_counter()
