"""The LightningModule and nothing else: forward, loss, optimizer, gradient norm."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from src.config.schema import HardwareConfig, OptimConfig
from src.data.batch import Batch
from src.errors import DataError
from src.models.backbone import RWKV
from src.models.parameters import ParameterGroup
from src.training.carried import CarriedStates
from src.training.optim import build_optimizer


class TrainingModule(pl.LightningModule):
    """One micro batch forward to its loss; everything a run does around it is in callbacks."""

    def __init__(
        self,
        model: RWKV,
        groups: list[ParameterGroup],
        optim: OptimConfig,
        hardware: HardwareConfig,
        carried: CarriedStates,
    ) -> None:
        super().__init__()
        self.model = model
        self._groups = groups
        self._optim = optim
        self._hardware = hardware
        self.carried = carried
        self._micro_losses: list[Tensor] = []
        self._grad_norm: Tensor | None = None
        self._fault: str | None = None
        self.stop_requested = False

    def on_train_batch_start(self, batch: Any, batch_index: int) -> int | None:
        """-1 tells Lightning to end the run here, on every rank."""
        return -1 if self.stop_requested else None

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Mean of weight times cross entropy over the tokens of one micro batch."""
        self._fault = self._fault or next(filter(None, batch.faults), None)
        loss, state = self.model.loss_and_state(
            batch.tokens, batch.targets, mask=batch.mask, total=batch.tokens.numel(),
            state=self.carried.before(batch), reset=batch.reset,
            head_rows=self._hardware.head_chunk,
        )
        self.carried.keep(batch, state)
        self._micro_losses.append(loss.detach())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer over RWKV's parameter groups."""
        return build_optimizer(self._groups, self._optim, self._hardware)

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """Clips to grad_clip and keeps the norm before it; DeepSpeed's engine does both itself."""
        limit = self._optim.grad_clip
        trained = [p for group in self._groups for p in group.parameters]
        # with an infinite limit this only measures
        self._grad_norm = torch.nn.utils.clip_grad_norm_(trained, limit if limit > 0 else torch.inf)

    def take_step_loss(self) -> Tensor:
        """Mean loss of this rank's micro batches since the last call, on its device."""
        loss = torch.stack(self._micro_losses).float().mean()
        self._micro_losses.clear()
        return loss

    def data_fault(self) -> DataError | None:
        """Why a sample of this rank could not be read, None if all could."""
        return None if self._fault is None else DataError(self._fault)

    def last_grad_norm(self) -> Tensor | None:
        """Global gradient norm of the last step before clipping; None under DeepSpeed."""
        return self._grad_norm
