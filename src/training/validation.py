"""Loss on held-out text: the same evenly spread samples every time, shared out over the ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor

from src.data.batch import collate

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from src.data.dataset import ValidationDataset
    from src.models.backbone import RWKV


def validation_loss(
    trainer: pl.Trainer, model: RWKV, dataset: ValidationDataset, micro_bsz: int,
    head_rows: int | None,
) -> float:
    """Mean cross entropy in nats per token that counts; a collective call, one value for all ranks.

    Every rank makes the same number of forward passes, which ZeRO-3 needs; a rank without samples
    left repeats the first one with weight zero.
    """
    strategy = trainer.strategy
    rank, ranks = strategy.global_rank, strategy.world_size
    # [sum of losses x samples, samples]; the sample count does not depend on the world size
    total = torch.zeros(2, dtype=torch.float64)
    training = model.training
    model.eval()
    with torch.no_grad(), trainer.precision_plugin.val_step_context():
        for first in range(0, len(dataset), micro_bsz * ranks):
            own = range(first + rank * micro_bsz, first + (rank + 1) * micro_bsz)
            indices = [i for i in own if i < len(dataset)]
            batch = collate([dataset[i] for i in indices or [0]])
            batch = move_data_to_device(batch, strategy.root_device)
            loss = model.loss(
                batch.tokens, batch.targets, mask=batch.mask, total=batch.tokens.numel(),
                reset=batch.reset, head_rows=head_rows,
            )
            total += torch.tensor([loss.item() * len(indices), len(indices)], dtype=torch.float64)
    model.train(training)
    # sums in fp32 would round for large counts; NCCL needs the tensor on its device
    summed: Tensor = strategy.reduce(total.to(strategy.root_device), reduce_op="sum")
    return (summed[0] / summed[1]).item()
