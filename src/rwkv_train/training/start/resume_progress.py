"""The arithmetic of resuming: which step a run is at, in which steps, with which carried states."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from rwkv_train.config.resolved import ResolvedConfig, ResolvedOptim
from rwkv_train.config.run_length import RunLength, window_len
from rwkv_train.training.carried_state import CarriedStates
from rwkv_train.training.optim.optimizer_state import without_moments
from rwkv_train.training.progress import Progress, StepSize
from rwkv_train.training.start.resume_point import FromState, FromWeights, ResumePoint


class Resumed(NamedTuple):
    """Counters to resume with, and the resume point as this run uses it."""

    point: ResumePoint
    progress: Progress


def resume_progress(point: ResumePoint, config: ResolvedConfig, length: RunLength) -> Resumed:
    """Returns the counters of a run that starts at `point`; its notes say what has changed."""
    if isinstance(point, FromState):
        return _from_state(point, config, length)
    # Bare weights of mini-epoch N stand for its last step, unless they tell their place.
    step = config.train.epoch_begin * length.epoch_steps
    if isinstance(point, FromWeights) and point.tokens is not None:
        step = -(-point.tokens // length.tokens_per_step)
    # They have no carried states: on to the next rows.
    step = -(-step // length.windows) * length.windows
    return Resumed(point, Progress(step=step, ramp_begin=step))


def restore_carried(
    point: ResumePoint, config: ResolvedConfig, length: RunLength, progress: Progress
) -> CarriedStates:
    """Returns the carried states to resume with: none but in the middle of rows.

    Raises CheckpointError when the training state lacks one that is needed.
    """
    copies = config.hardware.context_parallel
    carried = CarriedStates(config.data.ctx_len, window_len(config), copies)
    if isinstance(point, FromState) and progress.step % length.windows:
        first, last = length.samples(progress.step)
        position = progress.step % length.windows * window_len(config)
        carried.restore(point.state["carried"], range(first, last + 1), position)
    return carried


def _from_state(point: FromState, config: ResolvedConfig, length: RunLength) -> Resumed:
    """Returns the counters of a training state, in this run's optimizer and steps."""
    point, saved = _with_optimizer(point, Progress.from_dict(point.state), config.optim)
    now = StepSize(length.tokens_per_step, config.data.ctx_len, length.windows)
    # A state from before these keys has steps as now, and was never read in windows.
    before = StepSize(
        point.state.get("tokens_per_step", now.tokens),
        point.state.get("ctx_len", now.ctx_len),
        point.state.get("windows", 1),
    )
    progress = saved.with_steps(before, now)
    if before == now:
        return Resumed(point, progress)
    skips = progress.step * now.tokens > saved.step * before.tokens
    note = (
        f"a step had {before.tokens:,} tokens and has {now.tokens:,} now: step "
        f"{saved.step} becomes step {progress.step}, "
        + ("after the samples it was in" if skips else "the same place in the data")
    )
    return Resumed(replace(point, notes=(*point.notes, note)), progress)


def _with_optimizer(
    point: FromState, progress: Progress, optim: ResolvedOptim
) -> tuple[FromState, Progress]:
    """Returns state and counters for this run's optimizer, perhaps another than the state's.

    Moments of another optimizer are dropped and the warmup ramp starts again, because it protects
    empty moments; a note says so.
    """
    before = point.state["optimizer"]
    if before == optim.optimizer:
        return point, progress
    ramp = (
        f"the warmup of {optim.warmup_steps} steps is repeated"
        if optim.warmup_steps
        else "there is no warmup: --warmup_steps 10 would give one"
    )
    note = (
        f"{point.path.name} holds the moments of {before}, this run has {optim.optimizer}: its"
        f" moments start empty and {ramp}"
    )
    point = replace(point, state=without_moments(point.state), notes=(*point.notes, note))
    return point, replace(progress, ramp_begin=progress.step)
