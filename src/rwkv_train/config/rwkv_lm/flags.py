"""The one door for RWKV-LM's flags: three generations and Lightning 1.9.5, translated or refused.

Every flag of RWKV-LM's train.py that does not mean exactly what ours of the same name means has
one row in FLAGS.  A flag is taken over (Taken: our field and a rule for the value), refused
(Refused: the reason, and the values at which the flag means "off" and is harmless), or without
effect (Idle: accepted with a notice, because RWKV-LM does not use it either).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rwkv_train.command_line import perhaps
from rwkv_train.config.command_line.argv import (
    Argument,
    asks_for_help,
    read_arguments,
    write_arguments,
)
from rwkv_train.config.command_line.fields import fields
from rwkv_train.config.rwkv_lm import values as values
from rwkv_train.config.rwkv_lm.stages import as_v4neo, is_v4neo, with_stage
from rwkv_train.config.rwkv_lm.values import Rule
from rwkv_train.errors import ConfigError


class Taken(NamedTuple):
    """The flag sets this field of ours."""

    field: str
    rule: Rule = values.same


class Refused(NamedTuple):
    """The flag is refused unless its value is one of `off`."""

    reason: str
    off: tuple[str, ...]


class Idle(NamedTuple):
    """The flag has no effect; `only`: the values accepted, () for any."""

    notice: str
    only: tuple[str, ...] = ()


class Translation(NamedTuple):
    """Our own flags, and what the user should be told once."""

    argv: list[str]
    notices: list[str]


_FALSE = ("0", "False", "false", "None")
_NOT_GIVEN = ("None", "")
_EXPERIMENT = "an experiment of RWKV-LM's author that no published model uses"
_IMAGES = "the image experiment of RWKV-v4neo is not part of this trainer"
_DEAD = "has no effect in RWKV-LM either"


def _instead(advice: str) -> str:
    return f"has no effect in RWKV-LM either, which sets it itself; {advice}"


FLAGS: dict[str, Taken | Refused | Idle] = {
    # Files and run control
    # The demo scripts pass 0 where the stage chooses the checkpoint.
    "load_model": Taken("load_model", values.none_if("", "0")),
    "wandb": Taken("wandb", values.none_if("")),
    "random_seed": Taken("random_seed", values.none_if_negative),
    "train_type": Taken("train_type", values.train_type),
    "my_pile_stage": Taken("train_stage", values.my_pile_stage),
    # 999999 stands in RWKV-LM's demo scripts, whose stages put the data's length in its place.
    "epoch_count": Taken("epoch_count", values.none_if("999999")),
    # 0 stands in the demo scripts, where RWKV-LM overwrites it when it resumes.
    "epoch_begin": Taken("epoch_begin", values.none_if("0")),
    "my_exit": Taken("exit_epoch", values.my_exit),
    "my_exit_tokens": Taken("exit_tokens", values.whole),
    # Data
    "data_type": Taken("data_type", values.data_type),
    "vocab_size": Taken("vocab_size", values.none_if_not_positive),
    "magic_prime": Taken("magic_prime", values.none_if_not_positive),
    "my_pile_version": Refused(
        "its list of data sets is not read; mix them by --data_file a:0.7,b:0.3", ("1",)
    ),
    "my_pile_shift": Taken("sample_offset", values.zero_if_negative),
    "my_sample_len": Refused("uint16 files are read at random positions, not in rows", ("0",)),
    "my_qa_mask": Refused(
        "it needs a data set on the author's own disk; to learn answers only, give conversations to"
        " make_data.py --chat_template, whose loss mask is used by itself (docs/data.md)",
        ("0",),
    ),
    "my_random_steps": Refused(f"{_EXPERIMENT}; --sampling random draws all samples so", ("0",)),
    # Schedule and optimizer
    "warmup_steps": Taken("warmup_steps", values.none_if_negative),
    "weight_decay_final": Taken("weight_decay_final", values.none_if_not_positive),
    "layerwise_lr": Taken("layerwise_lr", values.positive_is_true),
    "my_pile_edecay": Taken("hold_epochs", values.whole),
    "grad_cp": Taken("grad_cp", values.zero_or_one),
    # Model
    "my_testing": Taken("rwkv_version", values.my_testing),
    "dim_att": Taken("dim_att", values.none_if_not_positive),
    "dim_ffn": Taken("dim_ffn", values.none_if_not_positive),
    # v7's name of it is --head_size, which is also ours and needs no row.
    "head_size_a": Taken("head_size", values.whole),
    "head_chunk": Taken("head_chunk", values.none_if_not_positive),
    "load_partial": Taken("load_partial", values.zero_or_one),
    "kernel": Idle("chooses RWKV-LM's own CUDA kernel; ours: --wkv_backend", ("", "@rwkv3")),
    "pre_ffn": Refused(f"{_EXPERIMENT}, and which v5 cannot build", ("0",)),
    "tiny_att_dim": Refused(_EXPERIMENT, ("0",)),
    "tiny_att_layer": Refused(_EXPERIMENT, ("-999", "-1")),
    "my_pos_emb": Refused(_EXPERIMENT, ("0",)),
    "my_ffn_shift": Idle(_DEAD),
    "my_att_shift": Idle(_DEAD),
    "my_img_version": Refused(_IMAGES, ("0", "")),
    "my_img_size": Refused(_IMAGES, ("0",)),
    "my_img_bit": Refused(_IMAGES, ("0",)),
    "my_img_clip": Refused(_IMAGES, ("x", "")),
    "my_img_clip_scale": Refused(_IMAGES, ("1",)),
    "my_img_l1_scale": Refused(_IMAGES, ("0",)),
    "my_img_encoder": Idle(_DEAD),
    # Lightning's, taken over
    "accelerator": Taken("accelerator", values.accelerator),
    "devices": Taken("devices", values.devices),
    "precision": Taken("precision", values.precision),
    "strategy": Taken("strategy", values.strategy),
    "accumulate_grad_batches": Taken("accumulate_grad_batches", values.one_if_none),
    "max_steps": Taken("max_steps", values.none_if_negative),
    # Lightning's, which RWKV-LM overwrites whatever is given
    "logger": Idle(_instead("use --wandb")),
    "enable_checkpointing": Idle(_instead("use --epoch_save")),
    "replace_sampler_ddp": Idle(_instead("use --sampling")),
    "gradient_clip_val": Idle(_instead("use --grad_clip")),
    "num_sanity_val_steps": Idle(_instead("use --val_every")),
    "check_val_every_n_epoch": Idle(_instead("use --val_every")),
    "log_every_n_steps": Idle(_instead("every step is logged")),
    "max_epochs": Idle(_instead("use --epoch_count or --exit_epoch")),
    # Lightning's, refused
    "gradient_clip_algorithm": Refused("the global norm is clipped", ("norm", *_NOT_GIVEN)),
    "default_root_dir": Refused("use --proj_dir", _NOT_GIVEN),
    "num_processes": Refused("use --devices", _NOT_GIVEN),
    "gpus": Refused("use --accelerator gpu --devices", _NOT_GIVEN),
    "auto_select_gpus": Refused("choose with CUDA_VISIBLE_DEVICES", _FALSE),
    "tpu_cores": Refused("only cpu and gpu (CUDA) are supported", _NOT_GIVEN),
    "ipus": Refused("only cpu and gpu (CUDA) are supported", _NOT_GIVEN),
    "overfit_batches": Refused("train on a small data set instead", ("0",)),
    "track_grad_norm": Refused("metrics.jsonl always holds the gradient norm", ("-1",)),
    "fast_dev_run": Refused("use --max_steps", _FALSE),
    "min_epochs": Refused("nothing stops a run early", _NOT_GIVEN),
    "min_steps": Refused("nothing stops a run early", _NOT_GIVEN),
    "max_time": Refused("use --max_steps or --exit_tokens", _NOT_GIVEN),
    "limit_train_batches": Refused("use --epoch_steps", ("1", *_NOT_GIVEN)),
    "limit_val_batches": Refused("use --val_samples", ("1", *_NOT_GIVEN)),
    "limit_test_batches": Refused("train.py runs no tests", ("1", *_NOT_GIVEN)),
    "limit_predict_batches": Refused("train.py predicts nothing", ("1", *_NOT_GIVEN)),
    "val_check_interval": Refused("use --val_every", ("1", *_NOT_GIVEN)),
    "sync_batchnorm": Refused("RWKV has no batch norm", _FALSE),
    "enable_model_summary": Refused(
        "the run's header cannot be switched off", ("1", "True", "true")
    ),
    "resume_from_checkpoint": Refused("runs resume from --proj_dir by themselves", _NOT_GIVEN),
    "profiler": Refused("use --profile", _NOT_GIVEN),
    "benchmark": Refused("no convolution here could profit", (*_FALSE, "")),
    "deterministic": Refused("not supported; on a CPU runs are repeatable", (*_FALSE, "")),
    "reload_dataloaders_every_n_epochs": Refused("the sampler keeps its own position", ("0",)),
    "auto_lr_find": Refused("not supported; use --lr_init", _FALSE),
    "auto_scale_batch_size": Refused("not supported; use --micro_bsz", _FALSE),
    "detect_anomaly": Refused("not supported", _FALSE),
    "plugins": Refused("not supported", _NOT_GIVEN),
    "amp_backend": Refused("use --precision", ("native", *_NOT_GIVEN)),
    "amp_level": Refused("use --precision", _NOT_GIVEN),
    "move_metrics_to_cpu": Refused("metrics are plain numbers already", _FALSE),
    "multiple_trainloader_mode": Refused("one data set is read", ("max_size_cycle", *_NOT_GIVEN)),
    "inference_mode": Refused("validation never computes gradients", ("1", "True", "true")),
    "callbacks": Refused("not supported", _NOT_GIVEN),
}


def translate(argv: Sequence[str]) -> Translation:
    """Returns the command line in our own flags; unknown ones are passed on for `load` to name.

    Raises ConfigError for a refused flag or value, with the reason, and for two different names
    of one setting with different values.
    """
    # `load` prints the help, which a fault in another flag must not prevent.
    if asks_for_help(argv):
        return Translation(list(argv), [])
    flags = read_arguments(argv)
    notices: list[str] = []
    given: dict[str, tuple[str, Argument]] = {}
    for flag in flags:
        ours = _translated(flag, notices)
        if ours is None:
            continue
        first, earlier = given.get(ours.name, (flag.name, ours))
        # The same name twice is no fault: the last one wins, as in RWKV-LM's argparse.
        if first != flag.name and earlier.value != ours.value:
            raise ConfigError(
                f"--{first} and --{flag.name} set the same thing to different values; give one"
            )
        given[ours.name] = (flag.name, ours)
    result = [argument for _, argument in given.values()]
    # v7's --train_stage has neither the plain stage 0 nor the factor of stage 2.
    if given.get("train_stage", ("", None))[0] == "my_pile_stage":
        result = with_stage(result, notices)
    if is_v4neo(flags):
        result = as_v4neo(result, notices)
    return Translation(write_arguments(result), list(dict.fromkeys(notices)))


# Names of other trainers' flags, which look like none of ours.
_ELSEWHERE = {
    "batch_size": "micro_bsz",
    "per_device_train_batch_size": "micro_bsz",
    "gradient_accumulation_steps": "accumulate_grad_batches",
    "gradient_checkpointing": "grad_cp",
    "learning_rate": "lr_init",
    "epochs": "epoch_count",
    "num_train_epochs": "epoch_count",
    "output_dir": "proj_dir",
    "out_dir": "proj_dir",
    "max_seq_length": "ctx_len",
    "resume": "proj_dir",
}


def similar_flag(name: str) -> str:
    """Returns '; perhaps you meant ...' for an unknown flag, naming one that does something."""
    if name in _ELSEWHERE:
        return f"; perhaps you meant --{_ELSEWHERE[name]}"
    taken = [flag for flag, row in FLAGS.items() if isinstance(row, Taken)]
    return perhaps(name, [*fields(), "config", *taken], "--")


def _translated(flag: Argument, notices: list[str]) -> Argument | None:
    """Returns our flag for one of RWKV-LM's, or None where nothing is left to say."""
    name, value = flag
    row = FLAGS.get(name)
    if row is None:
        return flag
    shown = f"--{name}" if value is None else f"--{name} {_shown(value)}"
    if isinstance(row, Refused):
        if value is None or not values.is_one_of(value, row.off):
            raise ConfigError(
                f"{shown}: {row.reason} (accepted only as {_shown(row.off[0])}, which is off)"
            )
        return None
    if isinstance(row, Idle):
        if row.only and value is not None and value not in row.only:
            raise ConfigError(f"{shown}: expected {' or '.join(map(repr, row.only))}")
        notices.append(f"--{name} {row.notice}")
        return None
    # `load` knows whether the field is a switch, which needs no value.
    if value is None:
        return Argument(row.field, None)
    try:
        ours, notice = row.rule(value)
    except ValueError as error:
        raise ConfigError(f"{shown}: {error}") from None
    if notice:
        notices.append(f"--{name} {notice}")
    return Argument(row.field, ours)


def _shown(value: str) -> str:
    return value or '""'
