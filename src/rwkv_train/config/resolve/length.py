"""Resolves the length of the run: mini-epochs, token budget, length of the step-based schedule."""

from __future__ import annotations

import dataclasses

from rwkv_train.config.discovered import DataDiscovered, Discovered, StartDiscovered
from rwkv_train.config.mixture_list import mixture_components
from rwkv_train.config.resolved import ResolvedData, ResolvedTrain, not_narrowed
from rwkv_train.config.run_length import StepShape, budget_steps
from rwkv_train.config.schema import RunConfig, TrainConfig
from rwkv_train.errors import ConfigError

# RWKV-LM's mini-epoch in samples: 8!, which many batch sizes divide.
MINI_EPOCH_SAMPLES = 40320


def resolve_length(
    config: RunConfig, discovered: Discovered, data: ResolvedData, step: StepShape, lines: list[str]
) -> ResolvedTrain:
    """Returns the train section with mini-epochs, token budget, first mini-epoch and seed.

    Raises ConfigError for an --epoch_begin that contradicts the checkpoint.
    """
    given, found = config.train, discovered.data
    epoch_steps = _mini_epoch(step, lines) if given.epoch_steps is None else given.epoch_steps
    epoch_begin = _epoch_begin(given, discovered.start)
    exit_tokens = given.exit_tokens or 0
    if given.exit_tokens is None and found is not None:
        exit_tokens = _exit_tokens(config, found, lines)
    train = ResolvedTrain(
        exit_tokens=exit_tokens,
        epoch_steps=epoch_steps,
        epoch_begin=epoch_begin,
        random_seed=given.random_seed or 0,
        **not_narrowed(given, ResolvedTrain),
    )
    if found is None:
        return train
    # A negative budget needs epoch_count: half of its curve is the step-based one.
    if exit_tokens > 0:
        return dataclasses.replace(train, exit_epoch=_exit_epoch(train, step, lines))
    return dataclasses.replace(train, epoch_count=_epoch_count(train, data, found, step, lines))


def _mini_epoch(step: StepShape, lines: list[str]) -> int:
    """Returns the steps of a mini-epoch; it ends where rows end."""
    # Whole rows, because what a mini-epoch saves for the world carries no state into a row's rest.
    # RWKV-LM refuses batches that do not divide 40320, such as 256; here the rest is left off.
    groups = max(1, MINI_EPOCH_SAMPLES // step.samples)
    several = f", {step.windows} steps each" if step.windows > 1 else ""
    lines.append(
        f"epoch_steps {groups * step.windows}: mini-epochs of {groups * step.samples} samples in"
        f" batches of {step.samples}{several}"
    )
    return groups * step.windows


def _epoch_begin(train: TrainConfig, start: StartDiscovered) -> int:
    """Returns the number of the first mini-epoch: the one after the checkpoint's."""
    follows = 0 if start.epoch is None else start.epoch + 1
    if train.epoch_begin is None:
        return follows
    if start.epoch is not None and train.epoch_begin != follows:
        raise ConfigError(
            f"--epoch_begin {train.epoch_begin} contradicts {start.path}, after which"
            f" mini-epoch {follows} comes; leave the flag out"
        )
    return train.epoch_begin


def _exit_tokens(config: RunConfig, found: DataDiscovered, lines: list[str]) -> int:
    """Returns the budget of a run that was given none; 0 where the step-based schedule is meant."""
    train, hold = config.train, config.optim.hold_epochs
    if train.epoch_count is not None or hold:
        asks = f"--hold_epochs {hold}" if hold else f"--epoch_count {train.epoch_count}"
        lines.append(f"exit_tokens 0: {asks} asks for the step-based schedule")
        return 0
    mixed = mixture_components(config.data.data_file)
    what = "as many as all parts hold" if mixed else "one pass over the data"
    lines.append(f"exit_tokens {found.token_count}: {what}")
    return found.token_count


def _exit_epoch(train: ResolvedTrain, step: StepShape, lines: list[str]) -> int | None:
    """Returns the last mini-epoch of a run with a token budget.

    The budget's schedule has no use for epoch_count, which still limits the run.
    """
    steps = budget_steps(train.exit_tokens, step)
    if train.epoch_count is None or train.epoch_count * train.epoch_steps >= steps:
        return train.exit_epoch
    last = max(0, train.epoch_count - 1)
    if train.exit_epoch is not None and train.exit_epoch <= last:
        return train.exit_epoch
    lines.append(
        f"exit_epoch {last}: --epoch_count {train.epoch_count} ends the run before its budget of"
        f" {train.exit_tokens} tokens"
    )
    return last


def _epoch_count(
    train: ResolvedTrain,
    data: ResolvedData,
    found: DataDiscovered,
    step: StepShape,
    lines: list[str],
) -> int:
    """Returns the length of the step-based schedule: as given, else the data's mini-epochs."""
    if train.epoch_count is not None:
        return train.epoch_count
    # The prime is the length of one pass of the permutation; other data has all its slots.
    samples = data.magic_prime or found.token_count // data.ctx_len
    steps = samples // step.samples * step.windows
    count = steps // train.epoch_steps
    lines.append(f"epoch_count {count}: whole mini-epochs in the {samples} samples of the data")
    if count == 0:
        lines.append(
            "the learning rate is constant, because the data is shorter than a mini-epoch; a"
            " smaller --epoch_steps or --exit_tokens gives it a curve"
        )
    return count
