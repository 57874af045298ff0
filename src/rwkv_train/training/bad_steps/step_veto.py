"""The decision before every optimizer step: taken or skipped, on all ranks alike.

It falls after the last backward pass, when the global gradient norm is known and weights, moments
and Adam's count are still untouched. One collective call carries everything that the ranks have to
agree on at a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from rwkv_train.training.bad_steps.detector import SpikeDetector
from rwkv_train.training.bad_steps.zero_veto import ZeroVeto
from rwkv_train.training.distributed.collectives import mean_over_ranks
from rwkv_train.training.distributed.strategy import zero_engine
from rwkv_train.training.run_clock import RunClock


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
        """Tells whether no rank has a token that the loss mask counts: nothing to learn."""
        return self.fault is None and not self.flags.counts_tokens


class _Attached(NamedTuple):
    """The parts of a veto that exist once the trainer has set up its strategy."""

    strategy: Any
    step_loss: Callable[[], Tensor]
    flags: Callable[[], RankFlags]
    scaler: Any | None
    zero: ZeroVeto | None


class StepVeto:
    """Stands between the backward pass and the optimizer of one run.

    The module is given `allows` when it is built, and `attach` completes the veto when training
    starts: DeepSpeed's engine, inside which it has to decide, does not exist before. clock: of the
    run, which is told of waits for other ranks.
    """

    def __init__(self, detector: SpikeDetector, clock: RunClock) -> None:
        self._detector = detector
        self._clock = clock
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
            None if engine is None else ZeroVeto(engine.optimizer, self._decide),
        )

    def allows(self, grad_norm: Tensor) -> bool:
        """Tells whether the optimizer may step. Collective: once a step.

        grad_norm: global L2 norm before clipping, the same on every rank.
        """
        return self._decide(grad_norm, 1.0)[0]

    def _decide(self, scaled_norm: Tensor, scale: float) -> tuple[bool, float]:
        """Returns whether the optimizer may step, and the norm as a number. Collective.

        scaled_norm: the norm of gradients that carry the factor `scale`.
        """
        attached = self._require_attached()
        own, flags = attached.step_loss(), attached.flags()
        # Loss and flags in one reduction: a second collective call would cost every step a round
        # trip, and ranks that decided by their own flags alone would wait for each other for ever.
        vector = own.new_zeros(1 + len(flags))
        vector[0].copy_(own)
        # Filled one by one: a list would be copied to the device, for which a GPU is waited for.
        for i, flag in enumerate(flags):
            if flag:
                vector[1 + i].fill_(1)
        several = attached.strategy.world_size > 1
        # With cards the host waits for the others where it waits for its own.
        with self._clock.waiting_for_ranks() if several else nullcontext():
            if several:
                vector = mean_over_ranks(attached.strategy, vector)
            # ZeRO 2 with moments on the CPU measures there.
            there = scaled_norm.double().to(vector.device, non_blocking=True)
            # The step's only wait for the device.
            loss, *means, norm = torch.cat([vector.double(), there[None]]).tolist()
        # Above 0 means that one rank at least says so.
        outcome = self._judge(loss, norm / scale, RankFlags(*(mean > 0 for mean in means)))
        self._outcome = outcome
        # A sample that could not be read was zeros: its gradients must not reach the weights. And
        # without a gradient the moments and the decay would still move them.
        allowed = outcome.fault is None and not outcome.flags.data_fault and not outcome.is_empty
        return allowed, norm

    def _judge(self, loss: float, grad_norm: float, flags: RankFlags) -> StepOutcome:
        overflows = self._is_overflow(loss, grad_norm)
        fault = None if overflows else self._detector.fault_of(loss, grad_norm)
        return StepOutcome(loss, grad_norm, fault, flags)

    def take_outcome(self) -> StepOutcome:
        """Returns the decision about the step that has just ended. Collective."""
        if self._outcome is None:
            # DeepSpeed skipped it before it came to the norm: fp16 gradients overflowed.
            self.allows(torch.full_like(self._require_attached().step_loss(), math.inf))
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
