"""The complete configuration of a run, worked out from what was given and what was found.

Pure: the files and the machine were looked at before and arrive as `Discovered`.  Everything
that was derived is said in one line each, so that the run's header can show it.
"""

from __future__ import annotations

import dataclasses

from rwkv_train.config.check.field_rules import check_fields
from rwkv_train.config.conventions import CONVENTIONS
from rwkv_train.config.discovered import Discovered
from rwkv_train.config.resolve.hardware import resolve_hardware
from rwkv_train.config.resolve.length import (
    resolve_data,
    resolve_length,
    resolve_mixture,
    resolve_warmup,
)
from rwkv_train.config.resolve.model_shape import resolve_model
from rwkv_train.config.resolve.optimizer_choice import resolve_optimizer
from rwkv_train.config.resolve.validation_length import resolve_validation
from rwkv_train.config.run_length import total_steps
from rwkv_train.config.schema import HardwareConfig, OptimConfig, RunConfig
from rwkv_train.errors import ConfigError

EPS_8BIT = 1e-8


def resolve(config: RunConfig, discovered: Discovered) -> tuple[RunConfig, list[str]]:
    """`config` without gaps, and lines that say what was derived and what is not used.

    Sizes that follow from the version alone (dim_ffn, ranks) stay None: `models.complete` fills
    them.  At stage 1 so does what only training needs.  Raises ConfigError for settings that
    contradict the facts or each other.
    """
    check_fields(config)
    lines: list[str] = []
    _check_start(config, discovered, lines)
    model = resolve_model(config, discovered, lines)
    hardware = resolve_hardware(config, discovered, lines)
    config = dataclasses.replace(config, model=model, hardware=hardware)
    config = dataclasses.replace(config, data=resolve_data(config, discovered, lines))
    config = dataclasses.replace(config, data=resolve_validation(config, discovered, lines))
    config = dataclasses.replace(config, train=resolve_length(config, discovered, lines))
    config = dataclasses.replace(config, data=resolve_mixture(config, discovered))
    config = dataclasses.replace(config, optim=resolve_optimizer(config, discovered, lines))
    config = dataclasses.replace(config, optim=_resolve_optim(config, discovered, lines))
    check_fields(config)
    _report_unused(config, lines)
    return config, lines


def for_saving(resolved: RunConfig, given: RunConfig) -> RunConfig:
    """What proj_dir/config.yaml holds: the resolved run without the place it has arrived at.

    With it, `--config proj_dir/config.yaml` repeats the run from the start in an empty folder and
    goes on after the newest checkpoint in its own.
    """
    train = dataclasses.replace(resolved.train, epoch_begin=given.train.epoch_begin)
    return dataclasses.replace(resolved, train=train)


def _check_start(config: RunConfig, discovered: Discovered, lines: list[str]) -> None:
    train = config.train
    if train.train_stage in (2, 3, 4) and discovered.start == "fresh":
        raise ConfigError(
            f"--train_stage {train.train_stage} goes on from a checkpoint, and {train.proj_dir}"
            " holds none; write the initial weights first with --train_stage 1, or copy a base"
            " model there as rwkv-init.pth"
        )
    if train.train_type != "all" and discovered.start == "fresh" and train.train_stage != 1:
        what = {"states": "tunes the initial states of", "lora": "adapts"}[train.train_type]
        raise ConfigError(
            f"--train_type {train.train_type} {what} a trained model, but no weights were"
            f" found; give --load_model, or copy them to {train.proj_dir}/rwkv-init.pth"
        )
    if train.load_model is not None and discovered.start_path not in (None, train.load_model):
        if discovered.start_epoch < 0 and discovered.start == "weights":
            raise ConfigError(
                f"--load_model {train.load_model} and {discovered.start_path} both say where to"
                " start; leave the flag out, or remove the file"
            )
        lines.append(
            f"going on from {discovered.start_path}; --load_model {train.load_model} was the"
            " beginning"
        )
    if train.load_partial and discovered.start == "fresh":
        lines.append("load_partial is not used: no checkpoint is loaded")


def _resolve_optim(config: RunConfig, discovered: Discovered, lines: list[str]) -> OptimConfig:
    optim, version = config.optim, config.model.rwkv_version
    assert version is not None, "the model is resolved before the optimizer"
    conventions = CONVENTIONS[version]
    default = conventions.adam_eps
    if optim.optimizer == "adam8bit":
        # A small second moment is 0 in 8 bits; only eps then keeps the update from exploding.
        default = max(default, EPS_8BIT)
    adam_eps = default if optim.adam_eps is None else optim.adam_eps
    lines.append(
        f"RWKV-{version} is trained as RWKV-LM's {conventions.generation} does: adam_eps"
        f" {adam_eps:g}{' (default)' if optim.adam_eps is None else ''}, warmup from"
        f" {conventions.warmup_floor:g} of the rate"
    )
    factor = optim.special_lr_factor
    if factor is not None and not optim.layerwise_lr:
        lines.append(f"special_lr_factor {factor} is not used: layerwise_lr is off")
        factor = None
    return dataclasses.replace(
        optim,
        adam_eps=adam_eps,
        special_lr_factor=factor,
        warmup_steps=resolve_warmup(config, discovered, lines),
    )


def _report_unused(config: RunConfig, lines: list[str]) -> None:
    """Settings that change nothing in this run, though they do no harm."""
    data, train, hardware = config.data, config.train, config.hardware
    if train.train_stage == 1:
        return
    zero = hardware.strategy.startswith("deepspeed")
    if not zero and hardware.ds_bucket_mb != HardwareConfig.ds_bucket_mb:
        lines.append(f"ds_bucket_mb is not used: strategy {hardware.strategy}")
    if data.sampling == "random" and data.magic_prime is not None and train.exit_tokens > 0:
        lines.append(f"magic_prime {data.magic_prime} is not used: sampling is random")
    steps = total_steps(config)
    if train.max_steps is not None and steps is not None and train.max_steps > steps:
        lines.append(f"max_steps {train.max_steps} is not reached: the run has {steps} steps")
    if train.max_steps is not None and config.optim.warmup_steps > train.max_steps:
        lines.append(
            f"the warmup of {config.optim.warmup_steps} steps is longer than --max_steps"
            f" {train.max_steps}: the full rate is never reached"
        )
