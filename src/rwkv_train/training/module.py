"""The LightningModule and nothing else: forward, loss, optimizer, clipping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from rwkv_train.config.resolved import ResolvedHardware, ResolvedOptim
from rwkv_train.data.samples.batch import Batch
from rwkv_train.errors import DataError
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.parameters import ParameterGroup
from rwkv_train.ops.head_loss import Targets
from rwkv_train.training.carried_state import CarriedStates
from rwkv_train.training.optim.optimizer import build_optimizer


class TrainingModule(pl.LightningModule):
    """One micro batch forward to its loss; everything a run does around it is in callbacks."""

    def __init__(
        self,
        model: RWKV,
        groups: list[ParameterGroup],
        optim: ResolvedOptim,
        hardware: ResolvedHardware,
        carried: CarriedStates,
    ) -> None:
        super().__init__()
        self.model = model
        self._groups = groups
        self._optim = optim
        self._hardware = hardware
        self.carried = carried
        # loss and sample numbers of each micro batch of the current step
        self._micro_batches: list[tuple[Tensor, tuple[int, ...]]] = []
        self._fault: str | None = None
        self.stop_requested = False
        # Called with the gradient norm before clipping; False leaves the step out. None where
        # DeepSpeed's engine measures and clips (`gate`).
        self.allows_step: Callable[[Tensor], bool] | None = None

    def on_train_batch_start(self, batch: Any, batch_index: int) -> int | None:
        """-1 tells Lightning to end the run here, on every rank."""
        return -1 if self.stop_requested else None

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Mean of weight times cross entropy over the tokens of one micro batch."""
        self._fault = self._fault or next(filter(None, batch.faults), None)
        loss, state = self.model.loss_and_state(
            batch.tokens,
            Targets(batch.targets, batch.mask, batch.tokens.numel(), self._hardware.head_chunk),
            state=self.carried.before(batch),
            reset=batch.reset,
        )
        self.carried.keep(batch, state)
        self._micro_batches.append((loss.detach(), batch.numbers))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer over RWKV's parameter groups."""
        return build_optimizer(self._groups, self._optim, self._hardware)

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """Clips to grad_clip, or drops the gradients of a step that is to be left out.

        Without gradients the optimizers change nothing: no weight, no moment, no step count.
        DeepSpeed's engine does all this itself.
        """
        if self.allows_step is None:
            return
        limit = self._optim.grad_clip
        trained = [p for group in self._groups for p in group.parameters]
        # with an infinite limit this only measures
        norm = torch.nn.utils.clip_grad_norm_(trained, limit if limit > 0 else torch.inf)
        if not self.allows_step(norm):
            for parameter in trained:
                parameter.grad = None

    def step_loss(self) -> Tensor:
        """Mean loss of this rank's micro batches in the current step, on its device."""
        return torch.stack([loss for loss, _ in self._micro_batches]).float().mean()

    def micro_batches(self) -> list[tuple[float, tuple[int, ...]]]:
        """Loss and sample numbers of each of this rank's micro batches in the current step."""
        return [(loss.item(), numbers) for loss, numbers in self._micro_batches]

    def begin_step(self) -> None:
        """Forgets what was kept of the step before."""
        self._micro_batches.clear()
        self.carried.begin_step()

    def data_fault(self) -> DataError | None:
        """Why a sample of this rank could not be read, None if all could."""
        return None if self._fault is None else DataError(self._fault)
