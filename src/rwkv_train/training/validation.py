"""Losses on held-out text: the same samples every time, shared out over the ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.apply_func import move_data_to_device
from torch import Tensor

from rwkv_train.checkpoint.digest import content_digest
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.run_length import own_window_len
from rwkv_train.data.samples.batch import Batch, Sample, collate
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.compiled_blocks import as_written
from rwkv_train.training.checkpointing.saver import Saver
from rwkv_train.training.module import TrainingModule
from rwkv_train.training.progress import Progress
from rwkv_train.training.reporting.reporter import Reporter, notify
from rwkv_train.training.reporting.validation_record import (
    ValidationRecord,
    bucket_count,
    make_record,
)
from rwkv_train.training.run_clock import RunClock
from rwkv_train.training.start.open_data import HeldOutSource


class Validator:
    """Validates when the step callback asks for it, and keeps the best weights if asked to."""

    def __init__(
        self, config: ResolvedConfig, sources: Sequence[HeldOutSource], clock: RunClock
    ) -> None:
        self._config = config
        self._clock = clock
        self._sources = sources
        data = config.data
        # As states of earlier versions know the data.
        self._spelling = (
            f"{data.val_data_file or data.data_file}, split {data.val_split}, "
            f"{data.val_samples} x {data.val_ctx_len}"
        )
        self._data: str | None = None
        self._validated_step: int | None = None

    def run(
        self,
        trainer: pl.Trainer,
        module: TrainingModule,
        progress: Progress,
        saver: Saver,
        reporters: Sequence[Reporter],
    ) -> None:
        """Validates once after a step, and notifies the reporters. Collective."""
        if not self._sources or self._validated_step == progress.step:
            return
        config = self._config
        record = validate(
            trainer,
            module.model,
            self._sources,
            progress.step - 1,
            micro_bsz=config.train.micro_bsz,
            # Rows whole, one process each: not more at a time than it holds of them in training.
            chunk_len=config.train.chunk_len or own_window_len(config),
            head_rows=config.hardware.head_chunk,
        )
        self._validated_step = progress.step
        if self._data is None:
            self._data = samples_digest(self._sources)
        data = self._data
        if progress.best_val_data == self._spelling:
            progress.best_val_data = data
        if config.train.save_best:
            # The file may have been removed since, or be of another run on the same data.
            progress.compare_with_best(saver.about_best(trainer), data)
        record = replace(record, is_best=progress.improves(record.loss, data))
        notify(reporters, lambda reporter: reporter.on_validation(record))
        # Every rank saw the same loss, and so all of them gather the weights or none does.
        if record.is_best and config.train.save_best:
            with self._clock.spending("save"):
                saver.save_best(trainer, module, {"val_loss": record.loss, "val_data": data})


def samples_digest(sources: Sequence[HeldOutSource]) -> str:
    """Returns the SHA-256 of all held-out samples: the same text, cut and masked alike.

    So it does not matter under which path the data lie.
    """
    digest = hashlib.sha256()
    for source in sources:
        for index in range(len(source.dataset)):
            sample: Sample = source.dataset[index]
            parts = [sample.tokens, sample.targets, sample.mask, sample.reset]
            digest.update(content_digest(parts).encode())
    return digest.hexdigest()


def validate(
    trainer: pl.Trainer,
    model: RWKV,
    sources: Sequence[HeldOutSource],
    step: int,
    *,
    micro_bsz: int,
    chunk_len: int,
    head_rows: int | None,
) -> ValidationRecord:
    """Returns the model's losses after optimizer step `step`. Collective: equal on every rank.

    chunk_len: tokens per forward pass; the state is carried from one to the next. Every rank makes
    the same number of forward passes, which ZeRO-3 needs; a rank without samples left repeats the
    first one and does not count it.
    """
    strategy, rank, ranks = trainer.strategy, trainer.global_rank, trainer.world_size
    samples = [(source.dataset, i) for source in sources for i in range(len(source.dataset))]
    length = sources[0].dataset.ctx_len
    # One row per sample: each is written by one rank, so that their sum is exact whatever the
    # number of ranks, and is added up in one order. [sums or weights, samples, buckets]
    found = torch.zeros(2, len(samples), bucket_count(length), dtype=torch.float64)
    training = model.training
    # Dropout off; it would also draw from the generator that training must find unchanged.
    model.eval()
    context = trainer.precision_plugin.val_step_context()
    with torch.no_grad(), context, as_written(model):
        for first in range(0, len(samples), micro_bsz * ranks):
            own = range(first + rank * micro_bsz, first + (rank + 1) * micro_bsz)
            own = range(own.start, min(own.stop, len(samples)))
            read: list[Sample] = [samples[i][0][samples[i][1]] for i in own or [0]]
            batch = move_data_to_device(collate(read), strategy.root_device)
            sums = sums_by_position(model, batch, chunk_len, head_rows)
            if own:
                found[:, own.start : own.stop] = sums
    model.train(training)
    # NCCL needs the tensor on its device
    found = strategy.reduce(found.to(strategy.root_device), reduce_op="sum").cpu()
    parts, end = {}, 0
    for source in sources:
        parts[source.name] = slice(end, end + len(source.dataset))
        end += len(source.dataset)
    sums, weights = found.numpy()
    return make_record(step, sums, weights, length, parts, [s.bytes_per_token for s in sources])


def sums_by_position(model: RWKV, batch: Batch, chunk_len: int, head_rows: int | None) -> Tensor:
    """Returns [2, B, buckets] fp64 on the CPU: weighted losses and weights, by position.

    The position counts from the last reset (`validation_record`). Holds the activations of
    chunk_len tokens at a time, whatever the length.
    """
    batch_size, length = batch.tokens.shape
    result = torch.zeros(2, batch_size, bucket_count(length), dtype=torch.float64)
    buckets = _buckets(batch)
    found, _ = model.token_losses(
        batch.tokens, batch.targets, reset=batch.reset, head_rows=head_rows, chunk_len=chunk_len
    )
    losses = found.double().cpu()
    weights = torch.ones_like(losses) if batch.mask is None else batch.mask.double().cpu()
    result[0].scatter_add_(1, buckets, losses * weights)
    result[1].scatter_add_(1, buckets, weights)
    return result


def _buckets(batch: Batch) -> Tensor:
    """Returns [B, T] on the CPU: the bucket of every target, the bits of its position."""
    batch_size, length = batch.tokens.shape
    position = torch.arange(length).expand(batch_size, length)
    if batch.reset is not None:
        # The newest document start so far, at every position.
        starts = torch.where(batch.reset.cpu(), position, 0).cummax(1).values
        position = position - starts
    bounds = 2 ** torch.arange(bucket_count(length))  # 1, 2, 4, ...
    return torch.bucketize(position.contiguous(), bounds, right=True)
