"""Does what is due around a step, in order: rates, record, mini-epoch, validation, save, end.

One Lightning callback; Lightning sees the whole run as a single epoch, and a mini-epoch is only a
unit for saving, logging and naming.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.run_length import RunLength
from rwkv_train.training.bad_steps.detector import SpikeDetector
from rwkv_train.training.bad_steps.recovery import Recovery
from rwkv_train.training.bad_steps.step_veto import RankFlags, StepOutcome, StepVeto
from rwkv_train.training.checkpointing.saver import Saver
from rwkv_train.training.checkpointing.training_state import restore_state
from rwkv_train.training.distributed.collectives import gather_objects, raise_on_all_ranks
from rwkv_train.training.distributed.pulse import Pulse
from rwkv_train.training.distributed.rank_waits import count_collectives
from rwkv_train.training.distributed.strategy import zero_engine
from rwkv_train.training.module import TrainingModule
from rwkv_train.training.observing import Observer
from rwkv_train.training.optim.optimizer import set_rates
from rwkv_train.training.optim.schedule import Schedule, learning_rate, weight_decay
from rwkv_train.training.profiling.step_profiler import StepProfiler
from rwkv_train.training.progress import Progress
from rwkv_train.training.signals import StopRequest
from rwkv_train.training.step_reports import StepReports

# Steps from one measurement of the gradients by kind to the next: another pass over all of them.
GRADIENT_KINDS_EVERY = 20


class StepCallback(pl.Callback):
    """Drives one run from `progress` to the end of `length`.

    state: the training state that the run resumes exactly, None: the module's weights.
    on_restored: called once its files are not needed any more.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        length: RunLength,
        schedule: Schedule,
        progress: Progress,
        *,
        state: dict[str, Any] | None,
        on_restored: Callable[[], None],
        detector: SpikeDetector,
        veto: StepVeto,
        saver: Saver,
        recovery: Recovery,
        observer: Observer,
        reports: StepReports,
        profiler: StepProfiler | None,
        stop: StopRequest,
        pulse: Pulse,
    ) -> None:
        self._config = config
        self._length = length
        self._schedule = schedule
        self._progress, self._first_step = progress, progress.step
        self._state = state
        self._on_restored = on_restored
        self._detector = detector
        self._veto = veto
        self._saver = saver
        self._recovery = recovery
        self._observer = observer
        self._reports = reports
        self._profiler = profiler
        self._meter, self._clock = reports.meter, reports.meter.clock
        self._end_counting: Callable[[], None] = _nothing
        self._state_owed = self._said_postponed = False
        self._epoch_owed: int | None = None
        self.stop, self._pulse = stop, pulse

    def on_train_start(self, trainer: pl.Trainer, pl_module: TrainingModule) -> None:
        """Seeds dropout, then restores the training state: strategy and optimizer exist now."""
        # Per rank, or all ranks would drop the same activations. Before the state is restored,
        # which has a random state for each of the ranks that saved it.
        torch.manual_seed(self._config.train.random_seed + 1 + trainer.global_rank)
        if self._state is not None:
            with self._clock.spending("reload"):
                restore_state(trainer, pl_module, self._state)
            self._detector.load_state_dict(self._state.get("guard", {}))
            # Emptied and not only forgotten, since others have the dictionary: three times the
            # model's size would stay mapped, and its file on the disk, for the whole run.
            self._state.clear()
            self._state = None
        self._on_restored()
        self._veto.attach(trainer, pl_module.step_loss, lambda: self._flags(trainer, pl_module))
        if self._config.hardware.accelerator == "cpu" and zero_engine(trainer.strategy) is not None:
            self._end_counting = count_collectives(self._clock)
        self._reports.begin(self._progress)
        # Last: a signal before this point ends the process at once, and nothing is lost.
        self.stop.listen()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: TrainingModule, batch: Any, batch_idx: int
    ) -> None:
        """Sets rate and decay before the first micro batch of a step."""
        if pl_module.stop_requested or batch_idx % self._config.train.accumulate_grad_batches:
            return
        self._meter.begin()
        step = self._progress.step
        pl_module.begin_step(measures_kinds=step % GRADIENT_KINDS_EVERY == 0)
        # By steps over all restarts; Lightning's count begins at 0 each time.
        set_rates(trainer.optimizers[0], self._rate(step), weight_decay(self._schedule, step))

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: TrainingModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Records the step after its last micro batch, then does what is due at it. Collective."""
        if (batch_idx + 1) % self._config.train.accumulate_grad_batches:
            return
        outcome = self._veto.take_outcome()
        self._leave(trainer, pl_module, outcome.flags)
        if outcome.fault is not None:
            self._skip(trainer, pl_module, outcome)
        elif outcome.is_empty:
            self._pass_over()
        else:
            self._count(pl_module, outcome)
        self._saver.prepare(trainer, pl_module)
        self._pulse.end_step(self._progress.step, self._clock.work())
        self._reports.slow_ranks(self._progress, self._pulse.take_slow())
        self._report_saves()
        if self._progress.step % self._length.epoch_steps == 0:
            self._end_epoch()
        if self._observer.after_step(trainer, pl_module, self._progress, self._reports.reporters):
            self._meter.restart()
        self._state_owed |= outcome.flags.save_due
        # What a run ends with is saved when it ends.
        if not self._is_ending(pl_module):
            self._save_what_is_due(trainer, pl_module)
        if self._profiler is not None and self._profiler.after_step(self._progress.step):
            self._meter.restart()

    def on_train_end(self, trainer: pl.Trainer, pl_module: TrainingModule) -> None:
        """Saves the end of the run, or the unfinished mini-epoch it pauses in."""
        progress, length = self._progress, self._length
        if self._profiler is not None:
            self._profiler.close()
        # Without a step there is nothing new, and the files of the run before must stay.
        if progress.step == self._first_step:
            return
        self._reports.epoch(self._progress)
        self._observer.at_epoch(trainer, pl_module, progress, self._reports.reporters)
        with self._clock.spending("save"):
            if length.completes and progress.step == length.total_steps:
                self._saver.save_final(trainer, pl_module, progress)
            elif self._saver.saved_step != progress.step:
                epoch = (progress.step - 1) // length.epoch_steps
                self._saver.save_epoch(trainer, pl_module, progress, epoch, wait=True)
            else:
                self._saver.finish(trainer)
        self._report_saves()
        self._reports.end(progress)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Closes files and bars."""
        self._close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Closes them after an error too, for which Lightning calls no teardown."""
        self._close()

    def _close(self) -> None:
        # People wait for the prompt now: what is left of a save is tried at once.
        self._saver.wait(skip_backoff=True)
        self._report_saves()
        self._end_counting()
        self._end_counting = _nothing
        self.stop.release()
        self._observer.close()
        # Once, whichever hook comes first.
        self._reports.close()

    def _rate(self, step: int) -> float:
        return learning_rate(self._schedule, step, step - self._progress.ramp_begin)

    def _flags(self, trainer: pl.Trainer, module: TrainingModule) -> RankFlags:
        """Returns what this rank knows before the optimizer steps."""
        first = trainer.is_global_zero
        return RankFlags(
            asked_to_stop=self.stop.received is not None,
            data_fault=module.data_fault() is not None,
            save_due=first and self._saver.due(self._progress.step + 1),
            saves_failed=first and self._saver.fault() is not None,
            counts_tokens=module.counts_tokens(),
        )

    def _leave(self, trainer: pl.Trainer, module: TrainingModule, flags: RankFlags) -> None:
        """Ends the run on all ranks if one of them has a reason. Collective where a flag is set.

        A signal or bad data may reach one rank only; `flags` are those of any rank, so that all
        take the same branches here and leave after the same step.
        """
        if flags.data_fault:
            raise_on_all_ranks(trainer.strategy, module.data_fault())
        if flags.saves_failed:
            raise_on_all_ranks(trainer.strategy, self._saver.fault())
        if flags.asked_to_stop:
            # A launcher may send the signal to one process; the exit status is that of all.
            numbers = gather_objects(trainer.strategy, self.stop.received)
            self.stop.received = max(filter(None, numbers))
            module.stop_requested = True

    def _count(self, module: TrainingModule, outcome: StepOutcome) -> None:
        """Counts a step that was taken, and reports it."""
        step = self._progress.step
        self._progress.add_loss(outcome.loss)
        self._detector.record_good(outcome.loss)
        self._meter.end()
        rates = self._rate(step), weight_decay(self._schedule, step)
        share = module.loop_share(self._meter.seconds)
        kinds = module.gradient_kinds.take()
        self._reports.step(self._progress, outcome, rates, share, kinds)

    def _pass_over(self) -> None:
        """Counts a step with nothing to learn: its samples are read, and nothing changes."""
        self._progress.skip_step()
        self._detector.record_empty()
        self._reports.empty_step(self._progress)
        self._meter.restart()

    def _skip(self, trainer: pl.Trainer, module: TrainingModule, outcome: StepOutcome) -> None:
        """Counts a step that was skipped; after several in a row the run rolls back. Collective."""
        record = self._recovery.skip_step(trainer, module, outcome, self._progress.step)
        self._progress.skip_step()
        self._reports.bad_step(record)
        if self._detector.must_roll_back():
            # The state that is being written may be the one to return to.
            with self._clock.spending("save"):
                self._saver.wait_on_all_ranks(trainer, skip_backoff=True)
                back = self._recovery.roll_back(
                    trainer, module, self._progress.step, record.skipped
                )
            self._reports.rollback(back)
            # A run that is killed now would resume before the samples that are skipped, and meet
            # the same bad steps again.
            self._state_owed = True
        self._meter.restart()

    def _is_ending(self, module: TrainingModule) -> bool:
        """Tells whether the run ends after this step, and `on_train_end` saves it."""
        return module.stop_requested or self._progress.step == self._length.total_steps

    def _save_what_is_due(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Saves a mini-epoch, or else a state between them. Collective: the ranks agree."""
        epoch, step = self._epoch_owed, self._progress.step
        if epoch is None and not self._state_owed:
            return
        # A state in the middle of bad steps would be one to roll back to.
        if self._detector.bad_in_a_row:
            if not self._said_postponed:
                self._reports.save_postponed(step)
            self._said_postponed = True
            return
        if epoch is not None:
            self._observer.at_epoch(trainer, module, self._progress, self._reports.reporters)
        with self._clock.spending("save"):
            if epoch is None:
                self._saver.save_between(trainer, module, self._progress)
            else:
                self._saver.save_epoch(trainer, module, self._progress, epoch, wait=False)
        self._state_owed, self._epoch_owed, self._said_postponed = False, None, False
        # Saving is not training: it must not count in the next step's tokens per second.
        self._meter.restart()

    def _end_epoch(self) -> None:
        """Reports the mini-epoch that ends, and begins the next; it is saved if that is due."""
        self._reports.epoch(self._progress)
        # Before the state is captured, so that a resumed run agrees.
        self._progress.begin_epoch()
        every = self._config.train.epoch_save
        epoch = self._progress.step // self._length.epoch_steps - 1
        if every > 0 and epoch % every == 0:
            self._epoch_owed = epoch

    def _report_saves(self) -> None:
        self._reports.saves(self._saver.take_written())


def _nothing() -> None:
    """Ends nothing, where nothing was begun."""
