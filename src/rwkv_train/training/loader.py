"""The loader of a whole run: one iteration from the first remaining step to the last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.run_length import window_len, windows_per_row
from rwkv_train.config.token_columns import token_columns
from rwkv_train.data.samples.batch import Sample, collate, send_batches_by_value
from rwkv_train.data.samples.bptt_windows import WindowDataset, WindowNumbers
from rwkv_train.data.samples.column_dataset import ColumnDataset
from rwkv_train.data.samples.sample_source import SampleSource
from rwkv_train.data.sampling.sampler import SampleNumbers
from rwkv_train.errors import DataError
from rwkv_train.training.kept_heap import give_back_heap
from rwkv_train.training.run_clock import RunClock
from rwkv_train.training.signals import ignore_stop_signals


class FaultRecordingDataset(Dataset[Sample]):
    """Samples of `dataset`; one that cannot be read is zeros and says why.

    An error raised here would end this rank alone; the step callback makes all ranks leave after
    the step.
    """

    def __init__(self, dataset: SampleSource, ctx_len: int) -> None:
        self._dataset = dataset
        self._ctx_len = ctx_len

    def __getitem__(self, number: int) -> Sample:
        try:
            return self._dataset[number]
        except DataError as error:
            nothing = torch.zeros(self._ctx_len, dtype=torch.int64)
            return Sample(nothing, nothing, fault=str(error), number=number)


class TimedLoader(DataLoader[Sample]):
    """A loader that counts how long it is waited for, where a `clock` is set.

    Set behind the constructor, whose arguments Lightning keeps to build loaders anew.
    """

    clock: RunClock | None = None

    def __iter__(self) -> Any:
        """Returns torch's iterator, timed."""
        batches = super().__iter__()
        return batches if self.clock is None else _timed(batches, self.clock)


def _timed(batches: Iterator[Any], clock: RunClock) -> Iterator[Any]:
    while True:
        with clock.spending("data"):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


class RunData(pl.LightningDataModule):
    """Micro batches of this rank (`data.samples.batch.Batch`), in the run's order.

    first_step, steps: the part of the run that is still to do, in optimizer steps. clock: counts
    how long they are waited for.
    """

    def __init__(
        self,
        dataset: SampleSource,
        config: ResolvedConfig,
        first_step: int,
        steps: int,
        clock: RunClock,
    ) -> None:
        super().__init__()
        self._clock = clock
        rows = FaultRecordingDataset(dataset, config.data.ctx_len)
        self._windows = WindowDataset(rows, window_len(config))
        self._config = config
        self._first_step = first_step
        self._steps = steps

    def train_dataloader(self) -> DataLoader[Sample]:
        """Returns this rank's loader; Lightning calls for it once the ranks are known.

        The workers live as long as the run: mini-epochs are a matter of the step callback, not of
        the loader.
        """
        assert self.trainer is not None, "Lightning has attached it"
        train, workers = self._config.train, self._config.data.num_workers
        # Processes that share samples read the same ones.
        ranks = self._config.hardware.context_parallel
        group, rank = divmod(self.trainer.global_rank, ranks)
        rows = SampleNumbers(
            0,
            0,
            train.micro_bsz,
            train.accumulate_grad_batches,
            group,
            self.trainer.world_size // ranks,
        )
        windows = windows_per_row(self._config)
        # Before the workers are forked; spawned ones send as torch does, which is understood too.
        send_batches_by_value()
        loader = TimedLoader(
            self._samples(ranks, rank),
            batch_size=train.micro_bsz,
            sampler=WindowNumbers(rows, windows, self._first_step, self._steps),
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_begin_worker,
            pin_memory=self._config.hardware.accelerator == "gpu",
            # Never a short micro batch: losses of steps would have different meanings.
            drop_last=True,
            # The loader draws a seed for its workers; from the global generator that would make
            # a resumed run's dropout differ from an uninterrupted one's.
            generator=torch.Generator().manual_seed(0),
        )
        loader.clock = self._clock
        return loader

    def _samples(self, ranks: int, rank: int) -> Dataset[Sample]:
        """Returns the windows, with several `ranks` the columns of `rank` in them."""
        if ranks == 1:
            return self._windows
        length = window_len(self._config)
        columns = token_columns(length, ranks, rank, self._config.train.chunk_len)
        return ColumnDataset(self._windows, columns)


def _begin_worker(worker: int) -> None:
    """Sets up a loader worker, `worker` being its number."""
    ignore_stop_signals(worker)
    # It reads samples and has no steps, for which memory would be kept.
    give_back_heap()
