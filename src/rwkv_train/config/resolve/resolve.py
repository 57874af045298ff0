"""The complete configuration of a run, worked out from what was given and what was found.

Pure: the files and the machine were looked at before and arrive as `Discovered`.  Everything
that was derived is said in one line each, so that the run's header can show it.
"""

from __future__ import annotations

import dataclasses

from rwkv_train.config.check.field_rules import check_fields
from rwkv_train.config.discovered import Discovered, StartDiscovered
from rwkv_train.config.machine_schema import HardwareConfig
from rwkv_train.config.resolve.batch_split import resolve_batch
from rwkv_train.config.resolve.data_reading import resolve_data, resolve_mixture
from rwkv_train.config.resolve.hardware import resolve_hardware
from rwkv_train.config.resolve.length import resolve_length
from rwkv_train.config.resolve.model_shape import resolve_model
from rwkv_train.config.resolve.optimizer_choice import resolve_optimizer
from rwkv_train.config.resolve.validation_length import check_held_out
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.run_length import schedule_steps, step_shape, total_steps
from rwkv_train.config.schema import RunConfig, TrainConfig
from rwkv_train.errors import ConfigError


def resolve(config: RunConfig, discovered: Discovered) -> tuple[ResolvedConfig, list[str]]:
    """Returns `config` without gaps, and lines that say what was derived and what is not used.

    Raises ConfigError for settings that contradict what was found or each other.
    """
    check_fields(config)
    lines: list[str] = []
    _check_beginning(config.train, discovered.start, lines)
    model = resolve_model(config, discovered, lines)
    # Before the length: the tokens of a step depend on the number of processes.
    hardware = resolve_hardware(config, discovered, lines)
    data = resolve_data(config, discovered, lines)
    check_held_out(data, model, discovered, lines)
    split = resolve_batch(config.train, data.ctx_len, hardware, discovered, lines)
    config = dataclasses.replace(config, train=split)
    step = step_shape(config.train, data.ctx_len, hardware)
    train = resolve_length(config, discovered, data, step, lines)
    total = schedule_steps(train, step)
    resolved = ResolvedConfig(
        model=model,
        data=resolve_mixture(data, step, total, discovered.start.state),
        optim=resolve_optimizer(config, discovered, model, hardware, total, lines),
        train=train,
        adapter=config.adapter,
        safety=config.safety,
        hardware=hardware,
        log=config.log,
    )
    # Derived values can contradict given ones, which could not be seen before.
    check_fields(resolved.as_given())
    _report_unused(resolved, lines)
    return resolved, lines


def for_saving(resolved: ResolvedConfig, given: RunConfig) -> RunConfig:
    """Returns what proj_dir/config.yaml holds: the resolved run without the place it has reached.

    With it, `--config proj_dir/config.yaml` repeats the run from the start in an empty folder and
    resumes after the newest checkpoint in its own.
    """
    saved = resolved.as_given()
    # The number of this start would contradict the checkpoint at the next one.
    # What was accepted once is not accepted for ever.
    train = dataclasses.replace(
        saved.train, epoch_begin=given.train.epoch_begin, accept_changes=None
    )
    if train.global_batch_size is not None:
        # The split is that of these processes; others are to find their own.
        train = dataclasses.replace(
            train, micro_bsz=given.train.micro_bsz, accumulate_grad_batches=1
        )
    return dataclasses.replace(saved, train=train)


def _check_beginning(train: TrainConfig, start: StartDiscovered, lines: list[str]) -> None:
    """Raises ConfigError for settings that the run's beginning contradicts."""
    if train.train_type != "all" and start.kind == "fresh" and train.train_stage != 1:
        what = {"states": "tunes the initial states of", "lora": "adapts"}[train.train_type]
        raise ConfigError(
            f"--train_type {train.train_type} {what} a trained model, but no weights were"
            f" found; give --load_model, or copy them to {train.proj_dir}/rwkv-init.pth"
        )
    if train.load_model is not None and start.path not in (None, train.load_model):
        # Initial weights are another beginning, a numbered checkpoint a later place of this run.
        if start.epoch is None and start.kind == "weights":
            raise ConfigError(
                f"--load_model {train.load_model} and {start.path} both say where to"
                " start; leave the flag out, or remove the file"
            )
        lines.append(
            f"resuming from {start.path}; --load_model {train.load_model} was the beginning"
        )
    if train.load_partial and start.kind == "fresh":
        lines.append("load_partial is not used: no checkpoint is loaded")


def _report_unused(config: ResolvedConfig, lines: list[str]) -> None:
    """Adds a line for every setting that changes nothing in this run, though it does no harm."""
    data, train, hardware = config.data, config.train, config.hardware
    if train.train_stage == 1:
        return
    zero = hardware.strategy.startswith("deepspeed")
    if not zero and hardware.ds_bucket_mb != HardwareConfig.ds_bucket_mb:
        lines.append(f"ds_bucket_mb is not used: strategy {hardware.strategy}")
    # Without a positive budget the prime may still be the length of the schedule.
    if data.sampling == "random" and data.magic_prime is not None and train.exit_tokens > 0:
        lines.append(f"magic_prime {data.magic_prime} is not used: sampling is random")
    steps, warmup = total_steps(config), config.optim.warmup_steps
    if train.max_steps is None:
        return
    if steps is not None and train.max_steps > steps:
        lines.append(f"max_steps {train.max_steps} is not reached: the run has {steps} steps")
    if warmup is not None and warmup > train.max_steps:
        lines.append(
            f"the warmup of {warmup} steps is longer than --max_steps"
            f" {train.max_steps}: the full rate is never reached"
        )
