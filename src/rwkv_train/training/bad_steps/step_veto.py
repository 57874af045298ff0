"""The decision before every optimizer step: taken or skipped, on all ranks alike.

It falls after the last backward pass, when the global gradient norm is known and weights, moments
and Adam's count are still untouched. One collective call carries everything that the ranks have to
agree on at a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from rwkv_train.training.bad_steps.detector import SpikeDetector
from rwkv_train.training.distributed.strategy import zero_engine


class RankFlags(NamedTuple):
    """Facts of one rank on which all must act: a signal, unreadable data, a save that is due, saves
    that failed for good, a token that the loss mask counts."""

    asked_to_stop: bool = False
    data_fault: bool = False
    save_due: bool = False
    saves_failed: bool = False
    counts_tokens: bool = False


@dataclass(frozen=True)
class StepOutcome:
    """A step after its decision; flags: of any rank.

    loss: mean over the global batch; grad_norm: global, before clipping; fault: why the step is
    bad, None if it is not.
    """

    loss: float
    grad_norm: float
    fault: str | None
    flags: RankFlags

    @property
    def is_empty(self) -> bool:
        """Whether there was nothing to learn: no rank has a token that the loss mask counts."""
        return self.fault is None and not self.flags.counts_tokens


class _Attached(NamedTuple):
    """The parts of a veto that exist once the trainer has set up its strategy."""

    strategy: Any
    step_loss: Callable[[], Tensor]
    flags: Callable[[], RankFlags]
    scaler: Any | None
    zero: _ZeroVeto | None


class StepVeto:
    """Stands between the backward pass and the optimizer of one run.

    The module is given `allows` when it is built, and `attach` completes the veto when training
    starts: DeepSpeed's engine, inside which it has to decide, does not exist before.
    """

    def __init__(self, detector: SpikeDetector) -> None:
        self._detector = detector
        self._attached: _Attached | None = None
        self._outcome: StepOutcome | None = None

    def attach(
        self, trainer: pl.Trainer, step_loss: Callable[[], Tensor], flags: Callable[[], RankFlags]
    ) -> None:
        """Connects the veto with a trainer whose strategy is set up.

        step_loss: this rank's mean loss in the current step, on its device; flags: this rank's.
        """
        engine = zero_engine(trainer.strategy)
        self._attached = _Attached(
            trainer.strategy,
            step_loss,
            flags,
            getattr(trainer.precision_plugin, "scaler", None),
            # DeepSpeed's engine measures, clips and steps itself, inside its own optimizer.
            None if engine is None else _ZeroVeto(engine.optimizer, self.allows),
        )

    def allows(self, grad_norm: Tensor | float) -> bool:
        """Tells whether the optimizer may step. Collective: once a step.

        grad_norm: global L2 norm before clipping, the same on every rank.
        """
        attached = self._require_attached()
        own = attached.step_loss()
        # Loss and flags in one reduction: a second collective call would cost every step a round
        # trip, and ranks that decided by their own flags alone would wait for each other for ever.
        vector = torch.cat([own[None], own.new_tensor([float(f) for f in attached.flags()])])
        loss, *flags = attached.strategy.reduce(vector).tolist()
        norm = float(grad_norm)
        fault = None if self._is_overflow(loss, norm) else self._detector.fault_of(loss, norm)
        # The reduction is a mean over the ranks: above 0 means that one of them at least says so.
        self._outcome = StepOutcome(loss, norm, fault, RankFlags(*(flag > 0 for flag in flags)))
        # A sample that could not be read was zeros: its gradients must not reach the weights. And
        # without a gradient the moments and the decay would still move them.
        return fault is None and not self._outcome.flags.data_fault and not self._outcome.is_empty

    def take_outcome(self) -> StepOutcome:
        """Returns the decision about the step that has just ended. Collective."""
        if self._outcome is None:
            # DeepSpeed skipped it before it came to the norm: fp16 gradients overflowed.
            self.allows(math.inf)
        outcome, self._outcome = self._outcome, None
        assert outcome is not None, "`allows` has just set it"
        zero = self._require_attached().zero
        if zero is not None:
            zero.release()
        return outcome

    def _require_attached(self) -> _Attached:
        assert self._attached is not None, "attach() comes before the first step"
        return self._attached

    def _is_overflow(self, loss: float, grad_norm: float) -> bool:
        """Tells whether fp16 gradients are beyond its range, so that the scaler skips the step.

        With no scale left to lower they are a fault like any other.
        """
        attached = self._require_attached()
        if attached.zero is not None:
            scale = attached.zero.loss_scale
        else:
            scale = 0.0 if attached.scaler is None else attached.scaler.get_scale()
        return scale > 1 and math.isfinite(loss) and not math.isfinite(grad_norm)


class _ZeroVeto:
    """Lets `allows` decide inside DeepSpeed's ZeRO optimizers (stages 1, 2 and 3).

    They have a way of their own to skip a step, for gradients that overflow, which frees all their
    buffers and touches nothing else: a norm that is not finite. That is what a step that is
    not allowed gets.
    """

    def __init__(self, zero: Any, allows: Callable[[float], bool]) -> None:
        self._zero = zero
        self._allows = allows
        self._vetoed = False
        # Stages 1 and 2 in bf16 look at the norm only when asked to.
        self._checks = getattr(zero, "check_grad_overflow", None)
        self._update_scale = zero._update_scale
        zero._update_scale = self._update_scale_unless_vetoed
        # The stages measure at different places, and only here is the norm global and the step
        # still to come.
        if hasattr(zero, "scaled_global_norm"):
            self._measure = zero.scaled_global_norm
            zero.scaled_global_norm = self._norm_of_stages_1_and_2
        else:
            self._measure = zero._get_norm_groups
            zero._get_norm_groups = self._norms_of_stage_3

    @property
    def loss_scale(self) -> float:
        """The factor of the gradients; 1 in bf16 and fp32."""
        return float(self._zero.loss_scale)

    def release(self) -> None:
        """Makes ready for the next step."""
        self._vetoed = False
        if self._checks is not None:
            self._zero.check_grad_overflow = self._checks

    def _vetoes(self, scaled_norm: Tensor) -> bool:
        # The gradients still carry the loss scale here; the detector compares norms without it.
        self._vetoed = not self._allows(float(scaled_norm) / self.loss_scale)
        if self._vetoed and self._checks is not None:
            self._zero.check_grad_overflow = True
        return self._vetoed

    def _norm_of_stages_1_and_2(self, *arguments: Any, **options: Any) -> Tensor:
        norm: Tensor = self._measure(*arguments, **options)
        return torch.full_like(norm, math.inf) if self._vetoes(norm) else norm

    def _norms_of_stage_3(self) -> list[Any]:
        from deepspeed.runtime.utils import combine_grad_norm_groups

        norms: list[Any] = self._measure()
        return [math.inf] if self._vetoes(combine_grad_norm_groups(norms)) else norms

    def _update_scale_unless_vetoed(self, has_overflow: bool = False) -> None:
        scaler = self._zero.loss_scaler
        lowest = getattr(scaler, "min_scale", None)
        # A spike says nothing about the scale; at the lowest one DeepSpeed would end the process.
        if has_overflow and (self._vetoed or (lowest and scaler.cur_scale <= lowest)):
            return
        self._update_scale(has_overflow)
