"""The decision before every optimizer step: taken or left out, on all ranks alike.

It falls after the last backward pass, when the global gradient norm is known and weights, moments
and Adam's count are still untouched. One collective call carries everything that the ranks have to
agree on at a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from rwkv_train.training.distributed.strategy import zero_engine

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from rwkv_train.training.bad_steps.detector import Guard
    from rwkv_train.training.module import TrainingModule


class Flags(NamedTuple):
    """What one rank knows and all must act on: a signal, unreadable data, a save that is due, saves
    that failed for good."""

    asked_to_stop: bool = False
    data_fault: bool = False
    save_due: bool = False
    saves_failed: bool = False


@dataclass(frozen=True)
class Outcome:
    """A step after its decision; flags: of any rank.

    loss: mean over the global batch; grad_norm: global, before clipping; fault: why the step was
    left out, None if it was taken.
    """

    loss: float
    grad_norm: float
    fault: str | None
    flags: Flags


class StepGate:
    """Stands between the backward pass and the optimizer of one run."""

    def __init__(
        self, trainer: pl.Trainer, module: TrainingModule, guard: Guard, flags: Callable[[], Flags]
    ) -> None:
        self._strategy = trainer.strategy
        self._module = module
        self._guard = guard
        self._flags = flags
        self._scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._outcome: Outcome | None = None
        engine = zero_engine(trainer.strategy)
        self._zero = None if engine is None else _ZeroGate(engine.optimizer, self.allows)
        # DeepSpeed's engine measures, clips and steps itself, inside its own optimizer.
        module.allows_step = None if engine is not None else self.allows

    def allows(self, grad_norm: torch.Tensor | float) -> bool:
        """Whether the optimizer may step; a collective call, once a step."""
        own = self._module.step_loss()
        vector = torch.cat([own[None], own.new_tensor([float(f) for f in self._flags()])])
        loss, *flags = self._strategy.reduce(vector).tolist()
        norm = float(grad_norm)
        fault = None if self._is_overflow(loss, norm) else self._guard.fault_of(loss, norm)
        self._outcome = Outcome(loss, norm, fault, Flags(*(flag > 0 for flag in flags)))
        return fault is None and not self._outcome.flags.data_fault

    def take_outcome(self) -> Outcome:
        """The decision about the step that has just ended; a collective call."""
        if self._outcome is None:
            # DeepSpeed left it out before it came to the norm: fp16 gradients overflowed.
            self.allows(math.inf)
        outcome, self._outcome = self._outcome, None
        assert outcome is not None
        if self._zero is not None:
            self._zero.release()
        return outcome

    def _is_overflow(self, loss: float, grad_norm: float) -> bool:
        """fp16 gradients beyond its range: the scaler leaves the step out and lowers its scale.

        With nothing left to lower they are a fault like any other.
        """
        scale = self._zero.loss_scale if self._zero else self._scaler and self._scaler.get_scale()
        return bool(scale and scale > 1) and math.isfinite(loss) and not math.isfinite(grad_norm)


class _ZeroGate:
    """Lets `allows` decide inside DeepSpeed's ZeRO optimizers (stages 1, 2 and 3).

    They have a way of their own to leave a step out, for gradients that overflow, which frees all
    their buffers and touches nothing else: a norm that is not finite. That is what a step that is
    not allowed gets.
    """

    def __init__(self, zero: Any, allows: Callable[[float], bool]) -> None:
        self._zero = zero
        self._allows = allows
        self._held_back = False
        # Stages 1 and 2 in bf16 look at the norm only when asked to.
        self._checks = getattr(zero, "check_grad_overflow", None)
        self._update_scale = zero._update_scale
        zero._update_scale = self._update_scale_unless_held_back
        if hasattr(zero, "scaled_global_norm"):
            self._measure = zero.scaled_global_norm
            zero.scaled_global_norm = self._norm_of_stages_1_and_2
        else:
            self._measure = zero._get_norm_groups
            zero._get_norm_groups = self._norms_of_stage_3

    @property
    def loss_scale(self) -> float:
        """1 in bf16 and fp32."""
        return float(self._zero.loss_scale)

    def release(self) -> None:
        """Ready for the next step."""
        self._held_back = False
        if self._checks is not None:
            self._zero.check_grad_overflow = self._checks

    def _holds_back(self, scaled_norm: torch.Tensor) -> bool:
        self._held_back = not self._allows(float(scaled_norm) / self.loss_scale)
        if self._held_back and self._checks is not None:
            self._zero.check_grad_overflow = True
        return self._held_back

    def _norm_of_stages_1_and_2(self, *arguments: Any, **options: Any) -> torch.Tensor:
        norm = self._measure(*arguments, **options)
        return torch.full_like(norm, math.inf) if self._holds_back(norm) else norm

    def _norms_of_stage_3(self) -> list[Any]:
        from deepspeed.runtime.utils import combine_grad_norm_groups

        norms = self._measure()
        return [math.inf] if self._holds_back(combine_grad_norm_groups(norms)) else norms

    def _update_scale_unless_held_back(self, has_overflow: bool = False) -> None:
        scaler = self._zero.loss_scaler
        lowest = getattr(scaler, "min_scale", None)
        # A spike says nothing about the scale; at the lowest one DeepSpeed would end the process.
        if has_overflow and (self._held_back or (lowest and scaler.cur_scale <= lowest)):
            return
        self._update_scale(has_overflow)
