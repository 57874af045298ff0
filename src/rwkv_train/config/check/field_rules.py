"""Faults that show in the configuration alone, before anything is read from disk.

The same checks hold for what the user gave and for the resolved configuration: a field that is
still None is skipped.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from rwkv_train.config.check.adapter_settings import check_adapter
from rwkv_train.config.check.mixture_weights import check_mixture
from rwkv_train.config.check.validation_settings import check_validation
from rwkv_train.config.run_length import check_windows
from rwkv_train.config.schema import (
    DataConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    SafetyConfig,
    TrainConfig,
)
from rwkv_train.errors import ConfigError

# Fields that belong to some versions only, and the values at which they are harmless elsewhere.
# RWKV-LM's scripts give its default head size of 64 to RWKV-4 as well, which has no heads.
_VERSION_FIELDS: dict[str, tuple[str, tuple[int | None, ...]]] = {
    "head_qk": ("45", (0,)),
    "head_size": ("567", (None, 64)),
    "head_size_divisor": ("567", (8,)),
    "rank_mix": ("6", (None,)),
    "rank_decay": ("67", (None,)),
    "rank_iclr": ("7", (None,)),
    "rank_value": ("7", (None,)),
    "rank_gate": ("7", (None,)),
}


class _Range(NamedTuple):
    """Allowed values: from `lowest` to `highest`; `above`, `below`: without the end itself."""

    lowest: float
    highest: float = math.inf
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        high_enough = value > self.lowest if self.above else value >= self.lowest
        return high_enough and (value < self.highest if self.below else value <= self.highest)

    def __str__(self) -> str:
        low = f"above {self.lowest:g}" if self.above else f"at least {self.lowest:g}"
        if self.highest == math.inf:
            return low
        return f"{low} and {'below' if self.below else 'at most'} {self.highest:g}"


_RANGES: tuple[tuple[_Range, str], ...] = (
    (
        _Range(1),
        "n_layer n_embd dim_att dim_ffn vocab_size head_size head_size_divisor rank_mix rank_decay"
        " rank_iclr rank_value rank_gate special_lr_factor ctx_len val_samples val_ctx_len"
        " mix_tokens micro_bsz"
        " accumulate_grad_batches max_steps epoch_steps val_every devices num_nodes ds_bucket_mb"
        " head_chunk chunk_len bptt_chunks lora_r save_every_steps keep_last keep_every"
        " keep_last_weights",
    ),
    (
        _Range(0),
        "head_qk sample_offset num_workers lr_init lr_final weight_decay grad_clip"
        " hold_epochs exit_epoch epoch_count epoch_begin epoch_save random_seed"
        " save_every_minutes save_retry_seconds bad_steps_before_rollback max_rollbacks"
        " spike_sigma",
    ),
    (_Range(-1), "warmup_steps"),
    (_Range(0, 1, below=True), "dropout beta1 beta2 muon_momentum lora_dropout"),
    (_Range(0, above=True), "adam_eps weight_decay_final muon_lr lora_alpha val_split"),
    (_Range(2), "magic_prime"),
)


def check_fields(config: RunConfig) -> None:
    """Raises ConfigError for a value out of range and for settings that exclude each other."""
    _check_ranges(config)
    _check_model(config.model)
    _check_data(config.data, config.train)
    _check_what_counts(config.data, config.train)
    check_validation(config.data, config.train)
    check_mixture(config.data)
    _check_schedule(config.optim, config.train)
    _check_optimizer(config.optim, config.train)
    _check_start(config.train)
    check_adapter(config.adapter, config.train)
    _check_safety(config.safety, config.train)
    _check_log(config.log)
    check_windows(config)


def _check_ranges(config: RunConfig) -> None:
    limits = {name: limit for limit, names in _RANGES for name in names.split()}
    for section in dataclasses.fields(config):
        for name, value in dataclasses.asdict(getattr(config, section.name)).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"--{name} {value} is not a finite number")
            if name in limits and value is not None and not limits[name].holds(value):
                raise ConfigError(f"--{name} {value}: must be {limits[name]}")


def _check_model(model: ModelConfig) -> None:
    if model.n_embd is not None and model.n_embd % 32:
        nearest = max(32, round(model.n_embd / 32) * 32)
        raise ConfigError(f"--n_embd {model.n_embd} is not a multiple of 32; use {nearest}")
    if model.rwkv_version is None:
        return
    for name, (versions, harmless) in _VERSION_FIELDS.items():
        value = getattr(model, name)
        if value not in harmless and model.rwkv_version not in versions:
            raise ConfigError(
                f"--{name} {value}: RWKV-{model.rwkv_version} has no such size, only RWKV-"
                f"{', '.join(versions)}; leave it out"
            )


def _check_data(data: DataConfig, train: TrainConfig) -> None:
    if data.data_type == "dummy" and data.data_file is not None:
        raise ConfigError(
            f"--data_file {data.data_file} is not read with --data_type dummy; leave one out"
        )
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
    if data.sampling == "permutation" and data.data_type != "binidx":
        raise ConfigError(
            f"--sampling permutation needs --data_type binidx, not {data.data_type}; convert the"
            " data with make_data.py or leave --sampling out"
        )


def _check_what_counts(data: DataConfig, train: TrainConfig) -> None:
    """Masks and document boundaries."""
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


def _check_schedule(optim: OptimConfig, train: TrainConfig) -> None:
    if optim.lr_init == 0 and train.exit_tokens not in (None, 0):
        raise ConfigError(
            f"--lr_init 0 with a budget of {train.exit_tokens} tokens: the cosine needs a rate"
            " above 0; --exit_tokens 0 has a schedule that may start at 0"
        )
    if optim.weight_decay_final is not None and optim.weight_decay == 0:
        raise ConfigError(
            f"--weight_decay_final {optim.weight_decay_final} is reached by a factor per step,"
            " which needs a --weight_decay above 0"
        )
    if optim.hold_epochs and train.exit_tokens is not None and train.exit_tokens > 0:
        raise ConfigError(
            f"--hold_epochs {optim.hold_epochs} belongs to the step-based schedule, but"
            f" --exit_tokens {train.exit_tokens} asks for the cosine; leave one out"
        )
    if train.epoch_count and optim.hold_epochs >= train.epoch_count:
        raise ConfigError(
            f"--hold_epochs {optim.hold_epochs} leaves no mini-epoch to fall in of the"
            f" {train.epoch_count} of --epoch_count; use fewer"
        )


def _check_optimizer(optim: OptimConfig, train: TrainConfig) -> None:
    if optim.optimizer == "muon" and train.train_type != "all":
        raise ConfigError(
            f"--optimizer muon orthogonalises whole matrices, of which --train_type"
            f" {train.train_type} trains none; use --optimizer adamw"
        )
    if optim.optimizer == "muon" and optim.lr_init == 0:
        raise ConfigError(
            "--lr_init 0 with --optimizer muon: Muon's rate is in proportion to it; give a rate"
            " above 0"
        )
    if optim.optimizer in ("auto", "muon"):
        return
    for field in dataclasses.fields(OptimConfig):
        value = getattr(optim, field.name)
        if field.name.startswith("muon_") and value != field.default:
            raise ConfigError(
                f"--{field.name} {value} needs --optimizer muon, not {optim.optimizer}"
            )


def _check_start(train: TrainConfig) -> None:
    if train.load_model is None or train.train_stage in (None, 0, 1):
        return
    raise ConfigError(
        f"--load_model {train.load_model} is not read at --train_stage {train.train_stage}, which"
        f" goes on from {train.proj_dir}; copy it to {train.proj_dir}/rwkv-init.pth or use"
        " --train_stage 0"
    )


def _check_safety(safety: SafetyConfig, train: TrainConfig) -> None:
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
    if safety.keep_every is None or train.epoch_steps is None:
        return
    units = [n for n in (safety.save_every_steps, train.epoch_steps) if n is not None]
    if all(safety.keep_every % n for n in units):
        raise ConfigError(
            f"--keep_every {safety.keep_every} is no multiple of --epoch_steps"
            f" {train.epoch_steps} nor of --save_every_steps {safety.save_every_steps}: nothing is"
            f" saved there on purpose; use a multiple, such as {units[0] * 10}"
        )


def _changed(section: object) -> dict[str, object]:
    """The fields of a section that are not at their defaults."""
    return {
        f.name: getattr(section, f.name)
        for f in dataclasses.fields(section)
        if getattr(section, f.name) != f.default
    }


def _check_log(log: LogConfig) -> None:
    if log.wandb is None and log.wandb_mode == "offline":
        raise ConfigError("--wandb_mode offline needs --wandb PROJECT")
