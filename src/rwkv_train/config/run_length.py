"""Lengths of a step, a row and a run, in samples, tokens and optimizer steps.

A row of ctx_len tokens is read in windows: a window is what one optimizer step reads of it, namely
`bptt_chunks` chunks of `chunk_len` tokens, or without `bptt_chunks` the whole row.
"""

from __future__ import annotations

from dataclasses import dataclass

from rwkv_train.config.resolved import ResolvedConfig, ResolvedHardware, ResolvedTrain
from rwkv_train.config.schema import RunConfig, TrainConfig
from rwkv_train.config.token_columns import most_tokens


@dataclass(frozen=True)
class StepShape:
    """The reading of one optimizer step over all processes and micro steps.

    samples: rows it reads from; ctx_len: tokens of a row; windows: optimizer steps per row.
    """

    samples: int
    ctx_len: int
    windows: int

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.samples * (self.ctx_len // self.windows)


def step_shape(train: TrainConfig, ctx_len: int, hardware: ResolvedHardware) -> StepShape:
    """Returns what a step reads; needs the hardware resolved, which says how many read."""
    # RWKV-LM leaves accumulation out here, whereby its rates, budget and resume advance too
    # slowly by that factor.
    samples = readers(hardware) * train.micro_bsz * train.accumulate_grad_batches
    return StepShape(samples, ctx_len, ctx_len // _window_len(train, ctx_len))


def readers(hardware: ResolvedHardware) -> int:
    """Returns how many samples are read at once: processes, or groups that share a sample."""
    processes = hardware.num_nodes * hardware.devices
    # Stage 1 knows how many will share samples, but has one process.
    return max(1, processes // hardware.context_parallel)


def budget_steps(exit_tokens: int, step: StepShape) -> int:
    """Returns the optimizer steps that read this many tokens, the last one perhaps in part."""
    # The sign only chooses the curve.
    return -(-abs(exit_tokens) // step.tokens)


def schedule_steps(train: ResolvedTrain, step: StepShape) -> int | None:
    """Returns the optimizer steps from the start of the run to its schedule's end; None: no end."""
    # 0 leaves the end to the mini-epochs.
    if train.exit_tokens:
        return budget_steps(train.exit_tokens, step)
    return train.epoch_count * train.epoch_steps if train.epoch_count else None


@dataclass(frozen=True)
class RunLength:
    """Length of a run in optimizer steps, counted from its very start.

    total_steps: None for a run without an end.
    completes: reaching total_steps finishes the run (rwkv-final.pth is written); otherwise the
    run only pauses there (--max_steps, --exit_epoch) and is saved like a mini-epoch.
    reason: what ends it, for messages.
    batch_samples: samples that a step reads, whole or one of their `windows`.
    """

    tokens_per_step: int
    epoch_steps: int
    total_steps: int | None
    completes: bool
    reason: str
    batch_samples: int
    windows: int = 1

    def samples(self, step: int) -> tuple[int, int]:
        """Returns the global numbers of the first and the last sample that `step` reads from."""
        # Samples count from 1, as in RWKV-LM's sampler.
        first = step // self.windows * self.batch_samples
        return first + 1, first + self.batch_samples


def run_length(config: ResolvedConfig) -> RunLength:
    """Returns the length of a run with this resolved configuration."""
    train, step = config.train, _shape(config)
    ends: list[tuple[int, bool, str]] = []
    steps = schedule_steps(train, step)
    if steps is not None:
        budget = f"the budget of {abs(train.exit_tokens):,} tokens"
        reason = budget if train.exit_tokens else f"{train.epoch_count} mini-epochs"
        ends.append((steps, True, reason))
    if train.exit_epoch is not None:
        # exit_epoch is the last mini-epoch that is trained, and they count from 0.
        last = (train.exit_epoch + 1) * train.epoch_steps
        ends.append((last, False, f"--exit_epoch {train.exit_epoch}"))
    if train.max_steps is not None:
        ends.append((train.max_steps, False, f"--max_steps {train.max_steps}"))
    endless: tuple[int | None, bool, str] = (None, False, "nothing but you")
    # At equal length finishing wins over pausing: the weights of the end are what was asked for.
    end, completes, reason = min(ends, key=lambda end: (end[0], not end[1]), default=endless)
    return RunLength(
        tokens_per_step=step.tokens,
        epoch_steps=train.epoch_steps,
        total_steps=end,
        completes=completes,
        reason=reason,
        batch_samples=step.samples,
        windows=step.windows,
    )


def global_batch(config: ResolvedConfig) -> int:
    """Returns the samples per optimizer step over all processes and micro steps."""
    return _shape(config).samples


def tokens_per_step(config: ResolvedConfig) -> int:
    """Returns the tokens that one optimizer step reads."""
    return _shape(config).tokens


def total_steps(config: ResolvedConfig) -> int | None:
    """Returns `schedule_steps` of a whole configuration."""
    return schedule_steps(config.train, _shape(config))


def window_len(config: RunConfig) -> int:
    """Returns the tokens of a row that one optimizer step reads."""
    return _window_len(config.train, config.data.ctx_len)


def own_window_len(config: RunConfig) -> int:
    """Returns the tokens of a window that a process holds, of those that share it the most."""
    ranks = config.hardware.context_parallel
    return most_tokens(window_len(config), ranks, config.train.chunk_len)


def windows_per_row(config: RunConfig) -> int:
    """Returns W, the optimizer steps per row; 1 unless backpropagation is truncated."""
    return config.data.ctx_len // window_len(config)


def _shape(config: ResolvedConfig) -> StepShape:
    return step_shape(config.train, config.data.ctx_len, config.hardware)


def _window_len(train: TrainConfig, ctx_len: int) -> int:
    if train.bptt_chunks is None:
        return ctx_len
    assert train.chunk_len is not None, "checked: bptt_chunks needs chunk_len"
    return train.bptt_chunks * train.chunk_len
