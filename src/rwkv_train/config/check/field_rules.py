"""Faults that show in the configuration alone, before anything is read from disk.

The same checks hold for what the user gave and for the resolved configuration: a field that is
still None is skipped.
"""

from __future__ import annotations

import dataclasses

from rwkv_train.config.check.copy_settings import check_copies
from rwkv_train.config.check.field_limits import check_limits, check_version, check_width
from rwkv_train.config.check.live_settings import check_live
from rwkv_train.config.check.shared_samples import check_shared_samples
from rwkv_train.config.check.validation_settings import check_validation
from rwkv_train.config.check.window_settings import check_windows
from rwkv_train.config.machine_schema import HardwareConfig, LogConfig, SafetyConfig
from rwkv_train.config.mixture_list import mixture_components, shown_data_file, weights_change
from rwkv_train.config.resume_rules import check_accepted
from rwkv_train.config.schema import (
    AdapterConfig,
    DataConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    listed,
)
from rwkv_train.config.sections import Section, sections_of
from rwkv_train.errors import ConfigError

# What --lora_train may name; `models.adapters` says which tensors each one stands for.
_SHORTEST_HANG_SECONDS = 5
_TRAINED_FULLY = ("time", "ln", "emb", "head")


def check_fields(config: RunConfig) -> None:
    """Raises ConfigError for a value beyond its limits and for settings that exclude each other."""
    check_width(config.model)
    for section in sections_of(config):
        check_limits(section)
    check_version(config.model)
    _check_data(config.data, config.train)
    _check_what_counts(config.data, config.train)
    check_validation(config.data, config.train)
    _check_mixture(config.data)
    _check_schedule(config.optim, config.train)
    _check_optimizer(config.optim, config.train)
    _check_start(config.train)
    check_accepted(listed(config.train.accept_changes))
    _check_adapter(config.adapter, config.train)
    _check_safety(config.safety, config.train)
    _check_hardware(config.hardware)
    _check_log(config.log)
    check_copies(config)
    check_windows(config)
    check_shared_samples(config)
    check_live(config)


def _check_data(data: DataConfig, train: TrainConfig) -> None:
    """Raises ConfigError when there is nothing to read, or nothing that is read so."""
    if data.data_type == "dummy" and data.data_file:
        raise ConfigError(
            f"--data_file {data.data_file} is not read with --data_type dummy; leave one out"
        )
    # Stage 1 writes initial weights, for which it needs no data.
    if data.data_type != "dummy" and not data.data_file and train.train_stage != 1:
        raise ConfigError(
            "--data_file is missing: the path of a binidx pair without .bin or .idx, as"
            " make_data.py writes it"
        )
    if data.sampling == "random" and data.sample_offset:
        raise ConfigError(
            f"--sample_offset {data.sample_offset} shifts the permutation, but --sampling is"
            " random; leave one out"
        )
    # RWKV-LM, too, reads everything but binidx data at random positions.
    if data.sampling == "permutation" and data.data_type != "binidx":
        raise ConfigError(
            f"--sampling permutation needs --data_type binidx, not {data.data_type}; convert the"
            " data with make_data.py or leave --sampling out"
        )


def _check_what_counts(data: DataConfig, train: TrainConfig) -> None:
    """Raises ConfigError for masks and document boundaries that the data cannot have."""
    if data.loss_mask == "on" and data.data_type != "binidx":
        raise ConfigError(
            f"--loss_mask on: --data_type {data.data_type} has no loss mask, only binidx data has;"
            " make it with make_data.py --chat_template"
        )
    if not data.reset_at_documents:
        return
    if data.data_type in ("utf-8", "utf-16le", "dummy"):
        raise ConfigError(
            f"--reset_at_documents 1: --data_type {data.data_type} does not say where documents"
            " start; make a binidx pair with make_data.py"
        )
    if train.train_type == "states":
        raise ConfigError(
            "--reset_at_documents 1 with --train_type states: a reset empties the state that is"
            " to be trained; leave one out"
        )


def _check_mixture(data: DataConfig) -> None:
    """Raises ConfigError for weights and settings that do not go together."""
    parts = mixture_components(data.data_file)
    # Before the return below, since mix_tokens with a single data set is a fault as well.
    if data.mix_tokens is not None and not weights_change(parts):
        raise ConfigError(
            f"--mix_tokens {data.mix_tokens} says over how many tokens weights change, but those of"
            f" --data_file {shown_data_file(data.data_file)} do not; write PREFIX:BEGIN..END, or"
            " leave it out"
        )
    if not parts:
        return
    # A false value counts as not given, and so must binidx, which is the default.
    given = {
        "data_type": data.data_type != "binidx" and data.data_type,
        "magic_prime": data.magic_prime,
        "sample_offset": data.sample_offset,
        "val_split": data.val_split,
    }
    reasons = {
        "data_type": "only binidx data can be mixed",
        "magic_prime": "every part of a mixture has a prime of its own, which is computed",
        "sample_offset": "it shifts one data set, not the parts of a mixture",
        "val_split": "a mixture is validated on data of its own: --val_data_file",
    }
    for name, value in given.items():
        if value:
            raise ConfigError(
                f"--{name} {value} with a --data_file of {len(parts)} weighted parts: "
                f"{reasons[name]}; leave it out"
            )


def _check_schedule(optim: OptimConfig, train: TrainConfig) -> None:
    """Raises ConfigError for rates and decays that a curve cannot have."""
    # RWKV-LM's cosine is written in lr_final / lr_init and divides by zero here.  An open budget
    # passes: `resolve` fills it and checks again.
    if optim.lr_init == 0 and train.exit_tokens not in (None, 0):
        raise ConfigError(
            f"--lr_init 0 with a budget of {train.exit_tokens} tokens: the cosine needs a rate"
            " above 0; --exit_tokens 0 has a schedule that may start at 0"
        )
    # The path is wd x (final / wd)^q, at which RWKV-LM stops with a ZeroDivisionError.
    if optim.weight_decay_final is not None and optim.weight_decay == 0:
        raise ConfigError(
            f"--weight_decay_final {optim.weight_decay_final} is reached by a factor per step,"
            " which needs a --weight_decay above 0"
        )
    # A negative budget is allowed: half of its curve is the step-based one, which holds.
    if optim.hold_epochs and train.exit_tokens is not None and train.exit_tokens > 0:
        raise ConfigError(
            f"--hold_epochs {optim.hold_epochs} belongs to the step-based schedule, but"
            f" --exit_tokens {train.exit_tokens} asks for the cosine; leave one out"
        )
    # The fall takes the mini-epochs after the hold: RWKV-LM's progress divides by their steps,
    # less the warmup.
    if train.epoch_count and optim.hold_epochs >= train.epoch_count:
        raise ConfigError(
            f"--hold_epochs {optim.hold_epochs} leaves no mini-epoch to fall in of the"
            f" {train.epoch_count} of --epoch_count; use fewer"
        )


def _check_optimizer(optim: OptimConfig, train: TrainConfig) -> None:
    """Raises ConfigError for Muon where it has no matrices, and for its settings without it."""
    if optim.optimizer == "muon" and train.train_type != "all":
        raise ConfigError(
            f"--optimizer muon orthogonalises whole matrices, of which --train_type"
            f" {train.train_type} trains none; use --optimizer adamw"
        )
    # `ResolvedOptim.muon_factor` divides by lr_init.
    if optim.optimizer == "muon" and optim.lr_init == 0:
        raise ConfigError(
            "--lr_init 0 with --optimizer muon: Muon's rate is in proportion to it; give a rate"
            " above 0"
        )
    # auto can still become muon: it is the optimizer of the state from which the run resumes.
    if optim.optimizer in ("auto", "muon"):
        return
    for field in dataclasses.fields(OptimConfig):
        value = getattr(optim, field.name)
        if field.name.startswith("muon_") and value != field.default:
            raise ConfigError(
                f"--{field.name} {value} needs --optimizer muon, not {optim.optimizer}"
            )


def _check_start(train: TrainConfig) -> None:
    """Raises ConfigError for a model that the stage would not load."""
    # From stage 2 on RWKV-LM ignores the path and loads its newest checkpoint.
    if train.load_model is None or train.train_stage in (None, 0, 1):
        return
    raise ConfigError(
        f"--load_model {train.load_model} is not read at --train_stage {train.train_stage}, which"
        f" resumes from {train.proj_dir}; copy it to {train.proj_dir}/rwkv-init.pth or use"
        " --train_stage 0"
    )


def _check_adapter(adapter: AdapterConfig, train: TrainConfig) -> None:
    """Raises ConfigError for settings without --train_type lora and for words nobody knows."""
    if train.train_type != "lora":
        for field in dataclasses.fields(adapter):
            value = getattr(adapter, field.name)
            if value != field.default:
                raise ConfigError(
                    f"--{field.name} {value} belongs to --train_type lora, but --train_type is "
                    f"{train.train_type}; give --train_type lora or leave it out"
                )
    for word in listed(adapter.lora_train):
        if word not in _TRAINED_FULLY:
            raise ConfigError(
                f"--lora_train {adapter.lora_train}: {word!r} is unknown, expected some of "
                f"{', '.join(_TRAINED_FULLY)} with commas between"
            )
    if adapter.lora_targets is not None and not listed(adapter.lora_targets):
        raise ConfigError(
            "--lora_targets names no matrix; give names such as att.key,att.value, or leave it "
            "out for all large matrices"
        )


def _check_safety(safety: SafetyConfig, train: TrainConfig) -> None:
    """Raises ConfigError for limits that are never met and states that are never kept."""
    # Only what was changed: the defaults would otherwise contradict --on_bad_step stop.
    given = _changed(safety)
    for name in ("bad_steps_before_rollback", "max_rollbacks"):
        if name in given and safety.on_bad_step == "stop":
            raise ConfigError(
                f"--{name} {given[name]} is for steps that are skipped, but --on_bad_step is stop;"
                " leave one out"
            )
    if "max_rollbacks" in given and safety.bad_steps_before_rollback == 0:
        raise ConfigError(
            f"--max_rollbacks {given['max_rollbacks']} with --bad_steps_before_rollback 0: the run"
            " never goes back; leave one out"
        )
    # An open epoch_steps is filled by `resolve`, which checks again.
    if safety.keep_every is None or train.epoch_steps is None:
        return
    # Saves by the clock do not count: they meet a multiple only by chance.
    units = [n for n in (safety.save_every_steps, train.epoch_steps) if n is not None]
    if all(safety.keep_every % n for n in units):
        raise ConfigError(
            f"--keep_every {safety.keep_every} is no multiple of --epoch_steps"
            f" {train.epoch_steps} nor of --save_every_steps {safety.save_every_steps}: nothing is"
            f" saved there on purpose; use a multiple, such as {units[0] * 10}"
        )


def _changed(section: Section) -> dict[str, object]:
    """Returns the fields of a section that are not at their defaults."""
    return {
        f.name: getattr(section, f.name)
        for f in dataclasses.fields(section)
        if getattr(section, f.name) != f.default
    }


def _check_hardware(hardware: HardwareConfig) -> None:
    """Raises ConfigError, before other processes are started, when they were not to be."""
    processes = (hardware.devices or 1) * (hardware.num_nodes or 1)
    if hardware.strategy == "single_device" and processes > 1:
        raise ConfigError(
            f"--strategy single_device runs one process, not {processes}; use --strategy auto"
        )
    if hardware.compile and hardware.strategy.startswith("deepspeed_stage_3"):
        raise ConfigError(
            f"--compile 1 does not go with --strategy {hardware.strategy}, which gathers the"
            " weights of a block by hooks inside it; use --strategy deepspeed_stage_2, or leave"
            " --compile out"
        )
    if 0 < hardware.hang_timeout < _SHORTEST_HANG_SECONDS:
        raise ConfigError(
            f"--hang_timeout {hardware.hang_timeout:g}: signs of life come every second, on a busy"
            f" machine later; give {_SHORTEST_HANG_SECONDS} or more, or 0 for no limit"
        )


def _check_log(log: LogConfig) -> None:
    """Raises ConfigError for a mode of a log that is not written."""
    # online is the default and disabled asks for no log: neither contradicts a log that is off.
    if log.wandb is None and log.wandb_mode == "offline":
        raise ConfigError("--wandb_mode offline needs --wandb PROJECT")
    name = log.run_name
    if name is None:
        return
    if log.wandb is None and not log.tensorboard:
        raise ConfigError(f"--run_name {name} needs --wandb PROJECT or --tensorboard 1")
    # It is a folder's name in TensorBoard.
    if not name.strip() or name.startswith(".") or not name.isprintable() or set(name) & set("/\\"):
        raise ConfigError(
            f"--run_name {name!r} cannot be the name of a folder; expected letters, digits and "
            "spaces, without / and \\ and not beginning with a dot"
        )
