"""What happens around every optimizer step, in order: rates, record, mini-epoch, validation, end.

One Lightning callback; Lightning sees the whole run as a single epoch, and a mini-epoch is only a
unit for saving, logging and naming.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch

from src.errors import TrainingError
from src.training.optim import set_rates
from src.training.progress import EpochRecord, Progress, StepRecord
from src.training.saving import Saver, restore_state
from src.training.schedule import Schedule, learning_rate, weight_decay
from src.training.signals import StopRequest
from src.training.strategy import zero_engine
from src.training.together import gather_objects, raise_together
from src.training.validation import validation_loss

if TYPE_CHECKING:
    from src.config.schema import RunConfig
    from src.data.dataset import ValidationDataset
    from src.training.module import TrainingModule
    from src.training.plan import Plan
    from src.training.reporting.reporter import Reporter


class Loop(pl.Callback):
    """Drives one run from `progress` to the end of `plan`."""

    def __init__(
        self,
        config: RunConfig,
        plan: Plan,
        schedule: Schedule,
        progress: Progress,
        *,
        state: dict[str, Any] | None,
        base: dict[str, Any] | None,
        validation: ValidationDataset | None,
        reporters: list[Reporter],
    ) -> None:
        self._config = config
        self._plan = plan
        self._schedule = schedule
        self._progress = progress
        self._first_epoch = progress.step // plan.epoch_steps
        self._state = state
        self._validation = validation
        self._reporters = reporters
        self._saver = Saver(config, plan, base)
        self._saved_step: int | None = None
        self._last: StepRecord | None = None
        self._step_began = 0.0
        self.stop = StopRequest()

    def on_train_start(self, trainer: pl.Trainer, pl_module: TrainingModule) -> None:
        """Seeds dropout, then restores the training state: strategy and optimizer exist now."""
        torch.manual_seed(self._config.train.random_seed + 1 + trainer.global_rank)
        if self._state is not None:
            restore_state(trainer, pl_module, self._state)
            # three times the model's size in fp32
            self._state = None
        self.stop.listen()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: TrainingModule, batch: Any, batch_idx: int
    ) -> None:
        """Sets rate and decay before the first micro batch of a step."""
        if pl_module.stop_requested or batch_idx % self._config.train.accumulate_grad_batches:
            return
        if self._step_began == 0.0:
            self._step_began = time.perf_counter()
        step = self._progress.step
        set_rates(trainer.optimizers[0], self._rate(step), weight_decay(self._schedule, step))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: TrainingModule, outputs: Any, batch: Any,
        batch_idx: int,
    ) -> None:
        """After the last micro batch: records the step, then whatever is due at this step."""
        if (batch_idx + 1) % self._config.train.accumulate_grad_batches:
            return
        record = self._record(trainer, pl_module)
        self._last = record
        for reporter in self._reporters:
            reporter.on_step(record, self._progress)
        due_epoch = self._progress.step % self._plan.epoch_steps == 0
        saved = due_epoch and self._end_epoch(trainer, pl_module)
        every = self._config.train.val_every
        if saved if every is None else self._progress.step % every == 0:
            self._validate(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: TrainingModule) -> None:
        """Saves the end of the run, or the unfinished mini-epoch it pauses in."""
        if self._last is None:
            return
        progress, plan = self._progress, self._plan
        if plan.completes and progress.step == plan.total_steps:
            self._announce_epoch_rest()
            self._saved(self._saver.save_final(trainer, pl_module, progress))
        elif self._saved_step != progress.step:
            epoch = (progress.step - 1) // plan.epoch_steps
            self._announce_epoch_rest()
            self._saved(self._saver.save_epoch(trainer, pl_module, progress, epoch))
        else:
            return
        self._validate(trainer, pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Closes files and bars."""
        self._close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Closes them after an error too, for which Lightning calls no teardown."""
        self._close()

    def _close(self) -> None:
        self.stop.release()
        for reporter in self._reporters:
            reporter.close()
        self._reporters = []

    def _rate(self, step: int) -> float:
        return learning_rate(self._schedule, step, step - self._progress.ramp_begin)

    def _record(self, trainer: pl.Trainer, module: TrainingModule) -> StepRecord:
        # A signal or bad data may reach one rank only; all must leave after the same step.
        asked, fault = self.stop.received is not None, module.data_fault()
        own = module.take_step_loss()
        flags = own.new_tensor([asked, fault is not None])
        loss, asked, faulty = trainer.strategy.reduce(torch.cat([own[None], flags])).tolist()
        if faulty:
            raise_together(trainer.strategy, fault)
        if asked:
            numbers = gather_objects(trainer.strategy, self.stop.received)
            self.stop.received = max(filter(None, numbers))
            module.stop_requested = True
        step = self._progress.step
        grad_norm = _grad_norm(trainer, module)
        self._require_finite(trainer, step, loss, grad_norm)
        self._progress.add_loss(loss)
        now = time.perf_counter()
        seconds, self._step_began = now - self._step_began, now
        return StepRecord(
            step=step,
            loss=loss,
            lr=self._rate(step),
            weight_decay=weight_decay(self._schedule, step),
            grad_norm=grad_norm,
            tokens=(step + 1) * self._plan.tokens_per_step,
            tokens_per_second=self._plan.tokens_per_step / max(seconds, 1e-9),
        )

    def _require_finite(
        self, trainer: pl.Trainer, step: int, loss: float, grad_norm: float
    ) -> None:
        # With fp16 a step that overflows is skipped and the loss scale lowered: no fault.
        scaled = self._config.hardware.precision == "fp16"
        if math.isfinite(loss) and (scaled or math.isfinite(grad_norm)):
            return
        first, last = self._plan.samples(step)
        raise_together(trainer.strategy, TrainingError(
            f"step {step}: loss {loss}, gradient norm {grad_norm}; samples {first} to "
            f"{last}. Nothing was saved since the last checkpoint, which is good: "
            "go on from it with a lower --lr_init or a smaller --grad_clip, or look at the data"
        ))

    def _end_epoch(self, trainer: pl.Trainer, module: TrainingModule) -> bool:
        """Reports a finished mini-epoch and saves it if it is due; True if it was saved."""
        progress, plan = self._progress, self._plan
        epoch = progress.step // plan.epoch_steps - 1
        self._announce(epoch)
        every = self._config.train.epoch_save
        last = plan.total_steps is not None and progress.step == plan.total_steps
        due = (every > 0 and epoch % every == 0) or (last and not plan.completes)
        # The next mini-epoch begins before the state is captured, so that a resumed run agrees.
        progress.begin_epoch()
        if due and not (last and plan.completes):
            self._saved(self._saver.save_epoch(trainer, module, progress, epoch))
        return due and not (last and plan.completes)

    def _announce_epoch_rest(self) -> None:
        """Reports the mini-epoch the run ends in, if it is not finished."""
        if self._progress.epoch_loss_steps:
            self._announce((self._progress.step - 1) // self._plan.epoch_steps)

    def _announce(self, epoch: int) -> None:
        record = EpochRecord(
            epoch, epoch - self._first_epoch, self._progress.epoch_loss, self._last
        )
        for reporter in self._reporters:
            reporter.on_epoch(record)

    def _saved(self, path: Any) -> None:
        self._saved_step = self._progress.step
        for reporter in self._reporters:
            reporter.on_save(str(path))
        # Saving is not training: it must not count in the next step's tokens per second.
        self._step_began = time.perf_counter()

    def _validate(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        if self._validation is None:
            return
        loss = validation_loss(
            trainer, module.model, self._validation, self._config.train.micro_bsz,
            self._config.hardware.head_chunk,
        )
        for reporter in self._reporters:
            reporter.on_validation(self._progress.step - 1, loss)
        self._step_began = time.perf_counter()


def _grad_norm(trainer: pl.Trainer, module: TrainingModule) -> float:
    engine = zero_engine(trainer.strategy)
    norm = engine.get_global_grad_norm() if engine is not None else module.last_grad_norm()
    return float(norm.item() if isinstance(norm, torch.Tensor) else norm or 0.0)
