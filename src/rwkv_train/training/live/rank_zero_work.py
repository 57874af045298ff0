"""Work that rank zero does alone with the model, while the other ranks wait, however long."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import pytorch_lightning as pl
import torch

from rwkv_train.models.backbone import RWKV
from rwkv_train.models.compiled_blocks import as_written
from rwkv_train.training.distributed.collectives import wait_for_rank_zero

Found = TypeVar("Found")


def on_rank_zero(trainer: pl.Trainer, model: RWKV, work: Callable[[], Found]) -> Found | None:
    """Returns on rank zero what `work` finds, on the others None. Collective.

    The model is in evaluation mode meanwhile, without gradients and in the run's precision. What
    `work` raises is raised on rank zero, once no rank waits any more.
    """
    was_training = model.training
    # Dropout off; it would also draw from the generator that training must find unchanged.
    model.eval()

    def run() -> Found:
        # Entered here: modes of torch belong to a thread.
        context = trainer.precision_plugin.val_step_context()
        with torch.no_grad(), context, as_written(model):
            return work()

    try:
        if trainer.world_size == 1:
            return run()
        return _while_others_wait(trainer, run)
    finally:
        model.train(was_training)


def _while_others_wait(trainer: pl.Trainer, run: Callable[[], Found]) -> Found | None:
    with ThreadPoolExecutor(1, thread_name_prefix="asked model") as pool:
        job: Future[Found] | None = pool.submit(run) if trainer.is_global_zero else None

        def is_over(seconds: float) -> bool:
            return job is None or bool(wait([job], timeout=seconds).done)

        wait_for_rank_zero(trainer.strategy, is_over)
        return None if job is None else job.result()
