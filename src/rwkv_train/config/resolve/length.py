"""How the data is read and how long the run is: samples, mini-epochs, tokens, warmup."""

from __future__ import annotations

import dataclasses
from typing import Literal

from rwkv_train.config.conventions import CONVENTIONS
from rwkv_train.config.discovered import Discovered
from rwkv_train.config.mixture_list import parts_of, weights_change
from rwkv_train.config.resolve.optimizer_choice import restarts_optimizer
from rwkv_train.config.run_length import global_batch, tokens_per_step, total_steps, windows_per_row
from rwkv_train.config.schema import DataConfig, RunConfig, TrainConfig
from rwkv_train.errors import ConfigError

# RWKV-LM's mini-epoch in samples: 8!, which many batch sizes divide.
MINI_EPOCH_SAMPLES = 40320

# RWKV-LM's -1: no ramp. It enters the curve too, which it shifts by one step.
NO_WARMUP = -1


def resolve_data(config: RunConfig, discovered: Discovered, lines: list[str]) -> DataConfig:
    """The data section with its sampling, prime and tokenizer.

    Raises ConfigError when the data is too small or was written with another tokenizer.
    """
    data = config.data
    sampling = data.sampling or ("permutation" if data.data_type == "binidx" else "random")
    if data.sampling is None and sampling == "random":
        lines.append(f"sampling random: how {data.data_type} is read")
    data = dataclasses.replace(
        data,
        sampling=sampling,
        tokenizer=_tokenizer(data, discovered),
        loss_mask=_loss_mask(data, discovered, lines),
    )
    if discovered.token_count is None:
        assert config.train.train_stage == 1, "training needs data"
        return data
    if sampling == "random":
        _check_random(data, discovered.token_count)
        return data
    if parts_of(data.data_file):
        return data
    prime = data.magic_prime
    if prime is None:
        prime = _best_prime(data, discovered, lines)
    reach = prime * data.ctx_len + data.sample_offset
    if data.sample_offset and reach >= discovered.token_count:
        most = discovered.token_count - 1 - prime * data.ctx_len
        raise ConfigError(
            f"--sample_offset {data.sample_offset} reads up to token {reach}, but"
            f" {data.data_file} has only {discovered.token_count} tokens; use at most"
            f" {max(0, most)}"
        )
    return dataclasses.replace(data, magic_prime=prime)


def resolve_length(config: RunConfig, discovered: Discovered, lines: list[str]) -> TrainConfig:
    """The train section with mini-epochs, token budget, first mini-epoch and seed.

    Raises ConfigError for an --epoch_begin that contradicts the checkpoint.
    """
    train = config.train
    epoch_steps = train.epoch_steps
    if epoch_steps is None:
        epoch_steps = _mini_epoch(config, lines)
    train = dataclasses.replace(
        train,
        epoch_steps=epoch_steps,
        random_seed=train.random_seed or 0,
        epoch_begin=_epoch_begin(train, discovered),
    )
    if discovered.token_count is None:
        return train
    train = dataclasses.replace(train, exit_tokens=_exit_tokens(config, discovered, lines))
    config = dataclasses.replace(config, train=train)
    if train.exit_tokens > 0:
        return dataclasses.replace(train, exit_epoch=_exit_epoch(config, lines))
    return dataclasses.replace(train, epoch_count=_epoch_count(config, discovered, lines))


def resolve_mixture(config: RunConfig, discovered: Discovered) -> DataConfig:
    """The data section with mix_tokens, where weights change: a run that goes on keeps its own.

    Raises ConfigError when the run has no end over which they could change.
    """
    data = config.data
    if not weights_change(parts_of(data.data_file)) or data.mix_tokens is not None:
        return data
    saved = discovered.state_config.get("mix_tokens")
    if saved is not None and discovered.state_config.get("data_file") == data.data_file:
        return dataclasses.replace(data, mix_tokens=saved)
    steps = total_steps(config)
    if steps is None:
        raise ConfigError(
            f"--data_file {data.data_file}: its weights change over the run, which has no end; give"
            " --mix_tokens or --exit_tokens"
        )
    return dataclasses.replace(data, mix_tokens=steps * tokens_per_step(config))


def resolve_warmup(config: RunConfig, discovered: Discovered, lines: list[str]) -> int | None:
    """Steps of warmup.

    The number also shifts the curve after the ramp, so an exact continuation keeps that of its
    run; a resume with an empty optimizer has RWKV-LM's automatic one.
    """
    if discovered.token_count is None:
        return config.optim.warmup_steps
    steps, total = config.optim.warmup_steps, total_steps(config)
    if steps is None:
        steps = _automatic_warmup(config, discovered, lines)
    if total is not None and steps >= total:
        lines.append(f"the warmup of {steps} steps is as long as the run of {total}")
    return steps


def _mini_epoch(config: RunConfig, lines: list[str]) -> int:
    """Steps of a mini-epoch; it ends where rows end."""
    batch, windows = global_batch(config), windows_per_row(config)
    groups = max(1, MINI_EPOCH_SAMPLES // batch)
    steps = f", {windows} steps each" if windows > 1 else ""
    lines.append(
        f"epoch_steps {groups * windows}: mini-epochs of {groups * batch} samples in batches of"
        f" {batch}{steps}"
    )
    return groups * windows


def _automatic_warmup(config: RunConfig, discovered: Discovered, lines: list[str]) -> int:
    restarts = restarts_optimizer(config, discovered)
    if discovered.start == "state" and discovered.state_warmup_steps is not None and not restarts:
        return discovered.state_warmup_steps
    if restarts or (discovered.start == "weights" and discovered.start_epoch >= 0):
        conventions = CONVENTIONS[config.model.rwkv_version]
        steps = conventions.warmup_after_resume(config.train.train_stage)
        lines.append(f"warmup_steps {steps}: the optimizer starts empty after a resume")
        return steps
    lines.append("no warmup, as in RWKV-LM when --warmup_steps is not given; 10 is usual")
    return NO_WARMUP


def _tokenizer(data: DataConfig, discovered: Discovered) -> str | None:
    given, found = data.tokenizer, discovered.data_tokenizer
    # Two paths may name the same file, moved; a built-in tokenizer is itself only.
    if given and found and given != found and {given, found} & {"world", "bytes"}:
        raise ConfigError(
            f"--tokenizer {given}: {data.data_file} was written with {found}; leave the flag out"
        )
    return given or found


def _loss_mask(
    data: DataConfig, discovered: Discovered, lines: list[str]
) -> Literal["auto", "on", "off"]:
    if (
        data.loss_mask == "on"
        and discovered.token_count is not None
        and not discovered.has_loss_mask
    ):
        raise ConfigError(
            f"--loss_mask on: there is no .mask beside {data.data_file}; make the data with"
            " make_data.py --chat_template, or leave the flag out to train on all tokens"
        )
    if not discovered.has_loss_mask:
        return data.loss_mask
    learnt = ""
    if discovered.supervised_tokens is not None and discovered.token_count:
        share = discovered.supervised_tokens / discovered.token_count
        counted = f"{discovered.supervised_tokens:,} of the {discovered.token_count:,} tokens"
        learnt = f", {counted} ({share:.1%})"
    if data.loss_mask == "off":
        lines.append("loss_mask off: the data has a mask, which is not used: all tokens count")
        return "off"
    lines.append(f"loss_mask on: the loss is the mean over what the data's mask counts{learnt}")
    return "on"


def _check_random(data: DataConfig, token_count: int) -> None:
    # RWKV-LM draws starts from [0, tokens - ctx_len - 1): there must be one.
    if token_count < data.ctx_len + 2:
        raise ConfigError(
            f"--ctx_len {data.ctx_len} needs at least {data.ctx_len + 2} tokens, but"
            f" {data.data_file or data.data_type} has {token_count}; use a smaller --ctx_len"
        )


def _best_prime(data: DataConfig, discovered: Discovered, lines: list[str]) -> int:
    if discovered.best_prime is None:
        raise ConfigError(
            f"{data.data_file} has {discovered.token_count} tokens, too few for the permutation at"
            f" --ctx_len {data.ctx_len}, which needs {3 * data.ctx_len}; use a smaller --ctx_len or"
            " --sampling random"
        )
    lines.append(
        f"magic_prime {discovered.best_prime}: computed from {discovered.token_count} tokens"
    )
    return discovered.best_prime


def _epoch_begin(train: TrainConfig, discovered: Discovered) -> int:
    follows = discovered.start_epoch + 1
    if train.epoch_begin is None:
        return follows
    if discovered.start_epoch >= 0 and train.epoch_begin != follows:
        raise ConfigError(
            f"--epoch_begin {train.epoch_begin} contradicts {discovered.start_path}, after which"
            f" mini-epoch {follows} comes; leave the flag out"
        )
    return train.epoch_begin


def _exit_tokens(config: RunConfig, discovered: Discovered, lines: list[str]) -> int:
    train, hold = config.train, config.optim.hold_epochs
    if train.exit_tokens is not None:
        return train.exit_tokens
    if train.epoch_count is not None or hold:
        asks = f"--hold_epochs {hold}" if hold else f"--epoch_count {train.epoch_count}"
        lines.append(f"exit_tokens 0: {asks} asks for the step-based schedule")
        return 0
    mixed = parts_of(config.data.data_file)
    what = "as many as all parts hold" if mixed else "one pass over the data"
    lines.append(f"exit_tokens {discovered.token_count}: {what}")
    return discovered.token_count


def _exit_epoch(config: RunConfig, lines: list[str]) -> int | None:
    """With a token budget the schedule has no use for epoch_count; it still limits the run."""
    train = config.train
    if train.epoch_count is None or train.epoch_count * train.epoch_steps >= total_steps(config):
        return train.exit_epoch
    last = max(0, train.epoch_count - 1)
    if train.exit_epoch is not None and train.exit_epoch <= last:
        return train.exit_epoch
    lines.append(
        f"exit_epoch {last}: --epoch_count {train.epoch_count} ends the run before its budget of"
        f" {train.exit_tokens} tokens"
    )
    return last


def _epoch_count(config: RunConfig, discovered: Discovered, lines: list[str]) -> int:
    """Length of the step-based schedule: what was given, else the mini-epochs in the data."""
    train, data = config.train, config.data
    if train.epoch_count is not None:
        return train.epoch_count
    samples = data.magic_prime or discovered.token_count // data.ctx_len
    steps = samples // global_batch(config) * windows_per_row(config)
    count = steps // train.epoch_steps
    lines.append(f"epoch_count {count}: whole mini-epochs in the {samples} samples of the data")
    if count == 0:
        lines.append(
            "the learning rate is constant, because the data is shorter than a mini-epoch; a"
            " smaller --epoch_steps or --exit_tokens gives it a curve"
        )
    return count
