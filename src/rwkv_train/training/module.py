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
from rwkv_train.training.distributed.context_group import ContextGroup
from rwkv_train.training.distributed.rank_waits import count_wait_behind_backward
from rwkv_train.training.distributed.strategy import zero_engine
from rwkv_train.training.optim.gradient_kinds import GradientKinds
from rwkv_train.training.optim.master_weights import round_weights
from rwkv_train.training.optim.optimizer import build_optimizer, clip_gradients
from rwkv_train.training.run_clock import RunClock
from rwkv_train.training.work_clock import WorkClock


class TrainingModule(pl.LightningModule):
    """One micro batch forward to its loss; everything a run does around it is in callbacks.

    allows_step: receives the global gradient norm before clipping; False skips the step. clock: of
    the run, which is told of waits for other ranks. window_len: tokens of a sample in a step, which
    `ranks` share; None: they are all here.
    """

    def __init__(
        self,
        model: RWKV,
        groups: list[ParameterGroup],
        optim: ResolvedOptim,
        hardware: ResolvedHardware,
        carried: CarriedStates,
        allows_step: Callable[[Tensor], bool],
        clock: RunClock,
        window_len: int,
        ranks: ContextGroup | None = None,
    ) -> None:
        super().__init__()
        self._ranks = ranks
        # By these all losses are divided, in pieces of any length: the mean over all processes is
        # then that over all tokens.
        self._positions = window_len if ranks is None else window_len / ranks.size
        self._clock = clock
        self.gradient_kinds = GradientKinds(groups, model.config)
        self._measures_kinds = False
        self.model = model
        self._groups = groups
        self._optim = optim
        self._hardware = hardware
        self.carried = carried
        self._allows_step = allows_step
        # loss and sample numbers of each micro batch of the current step
        self._micro_batches: list[tuple[Tensor, tuple[int, ...]]] = []
        self._counts = False
        # Of DDP's: on a card the host does not wait for them.
        self._waits_in_sight = hardware.strategy == "ddp" and hardware.accelerator == "cpu"
        self._fault: str | None = None
        self.stop_requested = False
        self._work = WorkClock()

    def on_train_batch_start(self, batch: Any, batch_index: int) -> int | None:
        """Returns -1 to end the run here, on every rank; Lightning's convention."""
        return -1 if self.stop_requested else None

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Returns the mean of weight times cross entropy over the tokens of one micro batch."""
        # Kept, not raised: the other ranks would wait for this one in the gradients' reduction.
        self._fault = self._fault or next(filter(None, batch.faults), None)
        self._work.begin()
        loss, state = self.model.loss_and_state(
            batch.tokens,
            Targets(
                batch.targets,
                batch.mask,
                len(batch.numbers) * self._positions,
                self._hardware.head_chunk,
            ),
            state=self.carried.load(batch),
            reset=batch.reset,
            with_state=self.carried.continues_after(batch),
            ranks=self._ranks,
        )
        self._work.end()
        self.carried.store(batch, state)
        # Detached and on its device: reading the value here would wait for the GPU.
        self._micro_batches.append((loss.detach(), batch.numbers))
        self._counts |= batch.counts
        return loss

    def backward(self, loss: Tensor, *_: Any, **options: Any) -> None:
        """Computes the gradients; DeepSpeed's engine does so by itself."""
        if self._waits_in_sight:
            count_wait_behind_backward(loss, self._clock)
        self._work.begin()
        loss.backward(**options)  # type: ignore[no-untyped-call]  # torch's own
        self._work.end()
        self._clock.switch("training")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns the optimizer over RWKV's parameter groups; rounds the weights if it is to."""
        masters = None
        if self._hardware.keeps_masters:
            # Here they are on their device already.
            several = self.trainer.accumulate_grad_batches > 1
            masters = round_weights(self.model, sums_in_fp32=several)
        return build_optimizer(self._groups, self._optim, self._hardware, masters)

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """Clips to grad_clip, or drops the gradients of a step that is to be skipped."""
        if zero_engine(self.trainer.strategy) is not None:
            # DeepSpeed's engine measures and clips itself, and the veto decides inside it.
            return
        if self._measures_kinds:
            # Before they are clipped.
            self.gradient_kinds.measure()
        self._work.begin()
        norm = clip_gradients(self.trainer.optimizers[0], self._optim.grad_clip)
        self._work.end()
        if not self._allows_step(norm):
            # Zeros would not do: without gradients the optimizers change nothing, no weight, no
            # moment and no step count; with zeros decay and moments would act.
            self._release_gradients()
        # The update follows at once, and ends with Lightning's call below.
        self._work.begin()

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Calls the optimizer, inside of which Lightning asks for gradients and clipping.

        Releases the gradients at once: Lightning would only after the next forward pass, at whose
        end memory is fullest.
        """
        super().optimizer_step(*arguments, **options)
        # DeepSpeed's engine has released those that it does not keep.
        if zero_engine(self.trainer.strategy) is None:
            self._release_gradients()
        self._work.end()

    def optimizer_zero_grad(self, *arguments: Any, **options: Any) -> None:
        """Releases the gradients of the step before."""
        self._work.begin()
        super().optimizer_zero_grad(*arguments, **options)
        self._work.end()

    def _release_gradients(self) -> None:
        for group in self._groups:
            for parameter in group.parameters:
                parameter.grad = None

    def loop_share(self, seconds: float) -> float | None:
        """Returns the share of a step's `seconds` that was not the model's work; None: unknown.

        On a GPU the host runs ahead, and DeepSpeed's engine is not seen from here.
        """
        if self._hardware.accelerator == "gpu" or zero_engine(self.trainer.strategy) is not None:
            return None
        return 1 - self._work.seconds / max(seconds, 1e-9)

    def step_loss(self) -> Tensor:
        """Returns this rank's mean loss over the micro batches of the current step, on its device.

        All micro batches are divided by as many tokens, so that a mean of means is the step's.
        """
        return torch.stack([loss for loss, _ in self._micro_batches]).float().mean()

    def micro_batches(self) -> list[tuple[float, tuple[int, ...]]]:
        """Returns loss and sample numbers of each of this rank's micro batches in this step."""
        return [(loss.item(), numbers) for loss, numbers in self._micro_batches]

    def counts_tokens(self) -> bool:
        """Tells whether the loss mask counts a token of this rank's in the current step."""
        return self._counts

    def begin_step(self, *, measures_kinds: bool) -> None:
        """Forgets what was kept of the step before.

        measures_kinds: whether the norms of the gradients by kind are wanted of this one, which
        ZeRO does not give: its ranks have parts of them.
        """
        self._measures_kinds = measures_kinds
        self.gradient_kinds.forget()
        self._micro_batches.clear()
        self._counts = False
        self._work.reset()
        self.carried.begin_step()

    def data_fault(self) -> DataError | None:
        """Returns why a sample of this rank could not be read, None if all could."""
        return None if self._fault is None else DataError(self._fault)
