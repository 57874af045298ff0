"""Looks at the model between steps: validation, samples of text, tasks. Nothing of it trains."""

from __future__ import annotations

from collections.abc import Sequence

import pytorch_lightning as pl

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.training.checkpointing.saver import Saver
from rwkv_train.training.live.live_questions import LiveQuestions
from rwkv_train.training.module import TrainingModule
from rwkv_train.training.progress import Progress
from rwkv_train.training.reporting.reporter import Reporter, notify
from rwkv_train.training.run_clock import RunClock
from rwkv_train.training.validation import Validator


class Observer:
    """Does what is due, unless the run was asked to leave: a job scheduler gives a few seconds."""

    def __init__(
        self,
        config: ResolvedConfig,
        validator: Validator,
        questions: LiveQuestions,
        saver: Saver,
        clock: RunClock,
    ) -> None:
        self._config = config
        self._clock = clock
        self._validator = validator
        self._questions = questions
        self._saver = saver
        self._evaluated_step: int | None = None

    def after_step(
        self,
        trainer: pl.Trainer,
        module: TrainingModule,
        progress: Progress,
        reporters: Sequence[Reporter],
    ) -> bool:
        """Does what is due after every few steps; returns whether anything was. Collective."""
        validates = _is_due(self._config.train.val_every, progress.step)
        samples = _is_due(self._config.log.sample_every, progress.step)
        if module.stop_requested or not (validates or samples):
            return False
        with self._clock.spending("validation"):
            if validates:
                self._validator.run(trainer, module, progress, self._saver, reporters)
            if samples:
                written = self._questions.sample(trainer, module.model, progress.step - 1)
                if written is not None:
                    notify(reporters, lambda reporter: reporter.on_samples(written))
        return True

    def at_epoch(
        self,
        trainer: pl.Trainer,
        module: TrainingModule,
        progress: Progress,
        reporters: Sequence[Reporter],
    ) -> None:
        """Validates and runs the tasks, once after a step. Collective.

        Before saving, so that the state knows the best loss.
        """
        if module.stop_requested:
            return
        with self._clock.spending("validation"):
            self._validate_and_ask(trainer, module, progress, reporters)

    def close(self) -> None:
        """Removes what was kept for the tasks."""
        self._questions.close()

    def _validate_and_ask(
        self,
        trainer: pl.Trainer,
        module: TrainingModule,
        progress: Progress,
        reporters: Sequence[Reporter],
    ) -> None:
        self._validator.run(trainer, module, progress, self._saver, reporters)
        if self._evaluated_step == progress.step:
            return
        self._evaluated_step = progress.step
        found = self._questions.evaluate(trainer, module.model, progress.step - 1)
        if found is not None:
            notify(reporters, lambda reporter: reporter.on_tasks(found))


def _is_due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0
