"""The loader of a whole run: one iteration from the first remaining step to the last."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from src.config.schema import RunConfig
from src.data.sampler import SampleNumbers
from src.training.signals import ignore_stop_signals


class RunData(pl.LightningDataModule):
    """Micro batches (tokens [B, T], targets [B, T]) of this rank, in the order of the run.

    first_step, steps: the part of the run that is still to do, in optimizer steps.
    """

    def __init__(
        self, dataset: Dataset[tuple[Tensor, Tensor]], config: RunConfig, first_step: int,
        steps: int,
    ) -> None:
        super().__init__()
        self._dataset = dataset
        self._config = config
        self._first_step = first_step
        self._steps = steps

    def train_dataloader(self) -> DataLoader:
        """Called by Lightning once the ranks are known.

        The workers live as long as the run: mini-epochs are a matter of the loop, not of the
        loader.
        """
        train, workers = self._config.train, self._config.data.num_workers
        numbers = SampleNumbers(
            self._first_step, self._steps, train.micro_bsz, train.accumulate_grad_batches,
            self.trainer.global_rank, self.trainer.world_size,
        )
        return DataLoader(
            self._dataset,
            batch_size=train.micro_bsz,
            sampler=numbers,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=ignore_stop_signals,
            pin_memory=self._config.hardware.accelerator == "gpu",
            drop_last=True,
            # The loader draws a seed for its workers; from the global generator that would make
            # a resumed run's dropout differ from an uninterrupted one's.
            generator=torch.Generator().manual_seed(0),
        )
