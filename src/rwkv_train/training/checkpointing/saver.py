"""Decides when and under which name the training state is saved, and has it written safely.

What a save needs is copied first; then it is written, in the background if that was asked for, one
save at a time: by the first rank, or every rank's share by itself. Files appear under their names
complete or not at all.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from rwkv_train.checkpoint.names import BEST, FINAL, numbered, step_state
from rwkv_train.checkpoint.provenance import read_about
from rwkv_train.checkpoint.resume import state_path
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.run_length import RunLength
from rwkv_train.errors import TrainingError
from rwkv_train.training.checkpointing.save_job import ATTEMPTS, SaveJob, SaveSteps, failed_for_good
from rwkv_train.training.checkpointing.sharded_states import ShardedStates
from rwkv_train.training.checkpointing.training_state import Stateful, capture_run
from rwkv_train.training.checkpointing.whole_states import WholeStates
from rwkv_train.training.distributed.collectives import (
    gather_objects,
    raise_on_all_ranks,
    wait_for_rank_zero,
)
from rwkv_train.training.module import TrainingModule
from rwkv_train.training.progress import Progress


class Saver:
    """Writes rwkv-N.pth, rwkv-final.pth and training states into the project folder.

    detector: what it has seen belongs into the state. storage: copies and writes it.
    folder_fault: tells why nothing may be written into the project folder any more.
    on_saved: called with every state once it is complete.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        length: RunLength,
        detector: Stateful,
        storage: WholeStates | ShardedStates,
        folder_fault: Callable[[], TrainingError | None] = lambda: None,
        on_saved: Callable[[Path], None] = lambda state: None,
    ) -> None:
        self._config = config
        self._on_saved = on_saved
        self._folder_fault = folder_fault
        self._length = length
        self._detector = detector
        self._storage = storage
        self._folder = Path(config.train.proj_dir)
        self._job: SaveJob | None = None
        self._written: list[Path] = []
        self._refused_in_a_row = 0
        self._is_prepared = False
        self._begun_at = time.monotonic()
        self.saved_step: int | None = None

    def prepare(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Lets memory be taken, beside training, for the copies of the first save.

        Called after every step: after the first one there are moments.
        """
        if not self._is_prepared:
            self._is_prepared = True
            self._storage.prepare(trainer, module)

    def due(self, step: int) -> bool:
        """Tells whether the state after `step` steps is to be saved between mini-epochs.

        Clocks differ between ranks: only rank zero's answer counts.
        """
        safety = self._config.safety
        if safety.save_every_steps is not None and step % safety.save_every_steps == 0:
            return True
        seconds = safety.save_every_minutes * 60
        return seconds > 0 and time.monotonic() - self._begun_at >= seconds

    def save_epoch(
        self,
        trainer: pl.Trainer,
        module: TrainingModule,
        progress: Progress,
        epoch: int,
        *,
        wait: bool,
    ) -> None:
        """Saves mini-epoch `epoch`, weights and state. Collective.

        wait: until it is on disk. Raises TrainingError when earlier saves have failed for good.
        """
        self._save(trainer, module, progress, self._folder / numbered(epoch), wait)
        self.saved_step = progress.step

    def save_between(self, trainer: pl.Trainer, module: TrainingModule, progress: Progress) -> None:
        """Saves the state alone, within a mini-epoch. Collective."""
        path = self._folder / step_state(progress.step)
        self._save(trainer, module, progress, path, False)

    def save_final(self, trainer: pl.Trainer, module: TrainingModule, progress: Progress) -> None:
        """Saves the end of the run and waits until it is on disk. Collective."""
        self._save(trainer, module, progress, self._folder / FINAL, True)

    def fault(self) -> TrainingError | None:
        """Tells why the run has to stop; None: it has not.

        Saves have failed, or had nothing finite to write, too often.
        """
        self._note_end()
        return self._folder_fault() or self._error()

    def take_written(self) -> list[Path]:
        """Returns the files that were written since the last call."""
        self._note_end()
        taken, self._written = self._written, []
        return taken

    def wait(self, *, skip_backoff: bool = False) -> None:
        """Returns once nothing is being written; skip_backoff: without pauses between attempts."""
        if self._job is not None:
            self._job.wait(skip_backoff=skip_backoff)

    def wait_on_all_ranks(self, trainer: pl.Trainer, *, skip_backoff: bool = False) -> None:
        """Returns once nothing is being written, however long that takes. Collective."""
        job = self._job
        wait_for_rank_zero(
            trainer.strategy,
            lambda seconds: job is None or job.wait(seconds, skip_backoff=skip_backoff),
        )
        # Another rank's part is done, or has failed, before the first rank's save ends.
        self.wait(skip_backoff=True)

    def finish(self, trainer: pl.Trainer) -> None:
        """Waits for the save that is under way. Collective.

        Raises TrainingError when it has failed.
        """
        self.wait_on_all_ranks(trainer)
        # Before the job is forgotten: at the end of a run a single refusal counts.
        error = self._error()
        self._note_end()
        raise_on_all_ranks(trainer.strategy, error)

    def about_best(self, trainer: pl.Trainer) -> dict[str, Any] | None:
        """Returns what best.pth says of itself, see `read_about`, on all ranks. Collective."""
        job = self._job
        wait_for_rank_zero(
            trainer.strategy,
            lambda seconds: job is None or job.path.name != BEST or job.wait(seconds),
        )
        about = read_about(self._folder / BEST) if trainer.is_global_zero else None
        found: dict[str, Any] | None = gather_objects(trainer.strategy, about)[0]
        return found

    def save_best(
        self, trainer: pl.Trainer, module: TrainingModule, about: Mapping[str, Any]
    ) -> None:
        """Saves the weights alone as best.pth. Collective: sharded weights are gathered.

        about: how good they are, and on what. The file is on disk before the next training state,
        which remembers it too.
        """
        self._make_way(trainer, wait=False)
        path = self._folder / BEST
        captured = self._storage.capture(trainer, module, moments=False)
        self._begin(path, self._storage.saving_weights(path, captured, about))
        self._end(trainer, wait=False)

    def _save(
        self,
        trainer: pl.Trainer,
        module: TrainingModule,
        progress: Progress,
        path: Path,
        wait: bool,
    ) -> None:
        self._make_way(trainer, wait)
        # From the beginning of a save, not from its end: slow disks must not stretch the interval.
        self._begun_at = time.monotonic()
        state = self._storage.capture(trainer, module, moments=True)
        state |= capture_run(trainer, module, progress, self._detector)
        state["epoch"] = (progress.step - 1) // self._length.epoch_steps
        self._begin(path, self._storage.saving(path, state))
        self._end(trainer, wait)

    def _make_way(self, trainer: pl.Trainer, wait: bool) -> None:
        """Waits for the save before, so that there is one copy of the weights. Collective.

        Saves reach the disk in their order that way.
        """
        self.wait_on_all_ranks(trainer, skip_backoff=True)
        self._note_end()
        if wait and self._job is not None:
            # At the end of a run, one file that could not be written is no reason to write none.
            print(f"WARNING: {self.fault()}", file=sys.stderr, flush=True)
            self._job = None
        # Rank zero alone knows; the others must not go on into the gathering of the next state.
        raise_on_all_ranks(trainer.strategy, self.fault())

    def _begin(self, path: Path, steps: SaveSteps | None) -> None:
        if steps is None:
            return

        def write() -> None:
            steps.write()
            # From the save's own thread: the next look at it may be a long step away.
            if path.name != BEST:
                self._on_saved(state_path(path))

        retry_seconds = self._config.safety.save_retry_seconds
        self._job = SaveJob(path, steps._replace(write=write), retry_seconds)

    def _end(self, trainer: pl.Trainer, wait: bool) -> None:
        """Waits for the save that has begun, unless it may go on in the background. Collective."""
        if wait:
            self.finish(trainer)
        elif not self._config.safety.save_in_background:
            self.wait_on_all_ranks(trainer)
            raise_on_all_ranks(trainer.strategy, self.fault())

    def _error(self) -> TrainingError | None:
        if self._job is None or not self._job.is_finished or self._job.fault is None:
            return None
        if isinstance(self._job.fault, TrainingError):
            return self._job.fault
        cause = self._job.fault.in_one_line()
        if self._job.is_refused:
            return TrainingError(f"the model cannot be saved: {cause}")
        return failed_for_good(cause)

    def _note_end(self) -> None:
        """Forgets a save that is over, unless it is a fault of the run."""
        if self._job is None or not self._job.is_finished:
            return
        if self._job.fault is None:
            self._written.append(self._job.path)
            self._refused_in_a_row = 0
            self._job = None
        elif self._job.is_refused and self._refused_in_a_row < ATTEMPTS - 1:
            # The steps to come are bad then, and the run goes back to good weights.
            self._refused_in_a_row += 1
            self._job = None
