"""Learning rate, weight decay and length of a run as pure functions of the step.

Source: RWKV-LM's trainer callback; formulas and digits in the project's schedule test vectors.
Steps are optimizer steps counted from the start of the run over all restarts (S); `ramp_step`
counts from the step at which the optimizer was last empty (0 unless a run was resumed from bare
weights), because the warmup ramp protects the empty moments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.run_length import tokens_per_step


@dataclass(frozen=True)
class Schedule:
    """All numbers the two curves depend on.

    exit_tokens: token budget X; > 0 cosine, < 0 mean of cosine and step-based, 0 step-based.
    warmup_steps: w; None: no warmup.
    warmup_floor: rate factor of the ramp's first step (0.01, for RWKV-4 0.2).
    decay_steps: end of the step-based curve in steps (mini-epochs times steps); 0: constant rate.
    hold_steps: steps before the step-based curve starts to fall.
    """

    lr_init: float
    lr_final: float
    tokens_per_step: int
    exit_tokens: int = 0
    warmup_steps: int | None = None
    warmup_floor: float = 0.01
    decay_steps: int = 0
    hold_steps: int = 0
    weight_decay: float = 0.0
    weight_decay_final: float | None = None

    @property
    def curve_begin(self) -> int:
        """Step at which the curve begins to fall, before `hold_steps`: the end of the warmup."""
        # RWKV-LM says -1 for "no warmup" and subtracts that too: its curves are one step ahead.
        return -1 if self.warmup_steps is None else self.warmup_steps


def make_schedule(config: ResolvedConfig, warmup_floor: float) -> Schedule:
    """Returns the rate and decay curves of a resolved configuration."""
    optim, train = config.optim, config.train
    return Schedule(
        lr_init=optim.lr_init,
        lr_final=optim.lr_final,
        tokens_per_step=tokens_per_step(config),
        exit_tokens=train.exit_tokens,
        warmup_steps=optim.warmup_steps,
        warmup_floor=warmup_floor,
        decay_steps=(train.epoch_count or 0) * train.epoch_steps,
        hold_steps=optim.hold_epochs * train.epoch_steps,
        weight_decay=optim.weight_decay,
        weight_decay_final=optim.weight_decay_final,
    )


def learning_rate(schedule: Schedule, step: int, ramp_step: int) -> float:
    """Returns the base learning rate of optimizer step `step`; groups multiply it by a factor."""
    s = schedule
    if s.exit_tokens > 0:
        rate = _cosine(s, _token_progress(s, step))
    elif s.exit_tokens < 0:
        rate = (_cosine(s, _token_progress(s, step)) + _step_based(s, step)) / 2
    else:
        rate = _step_based(s, step)
    if s.warmup_steps is not None and 0 <= ramp_step < s.warmup_steps:
        rate *= s.warmup_floor + (1 - s.warmup_floor) * ramp_step / s.warmup_steps
    return rate


def weight_decay(schedule: Schedule, step: int) -> float:
    """Returns the decay of the groups that decay: constant, or geometric along the progress."""
    s = schedule
    # From 0 there is no geometric way to anything.
    if s.weight_decay_final is None or s.weight_decay == 0:
        return s.weight_decay
    progress = _token_progress(s, step) if s.exit_tokens != 0 else _step_progress(s, step)
    decay: float = s.weight_decay * (s.weight_decay_final / s.weight_decay) ** progress
    return decay


def _token_progress(s: Schedule, step: int) -> float:
    warmup_tokens = s.curve_begin * s.tokens_per_step
    span = abs(s.exit_tokens) - warmup_tokens
    if span <= 0:
        # A warmup as long as the budget leaves no room to fall.
        return 0.0
    return min(max((step * s.tokens_per_step - warmup_tokens) / span, 0.0), 1.0)


def _step_progress(s: Schedule, step: int) -> float:
    span = s.decay_steps - s.hold_steps - s.curve_begin
    if span <= 0:
        return 0.0
    return min(max((step - s.hold_steps - s.curve_begin + 1) / span, 0.0), 1.0)


def _cosine(s: Schedule, progress: float) -> float:
    ratio = s.lr_final / s.lr_init
    return s.lr_init * ((0.5 + ratio / 2) + (0.5 - ratio / 2) * math.cos(math.pi * progress))


def _step_based(s: Schedule, step: int) -> float:
    if s.lr_init == s.lr_final or s.decay_steps == 0:
        return s.lr_init
    progress = _step_progress(s, step)
    # No logarithm of 0: RWKV-LM is linear then.
    if s.lr_init == 0 or s.lr_final == 0:
        return s.lr_init + (s.lr_final - s.lr_init) * progress
    return s.lr_init * math.exp(math.log(s.lr_final / s.lr_init) * progress)
