"""Fills in what RWKV-LM's generations mean and assume where a command line is silent."""

from __future__ import annotations

from collections.abc import Sequence

from rwkv_train.config.command_line.argv import Argument
from rwkv_train.config.rwkv_lm import values as values

# What --my_pile_stage N means beyond our --train_stage N.
_STAGE_MEANS: dict[str, dict[str, str]] = {
    # RWKV-LM reads binidx data, too, at random positions at stages 0 and 4.
    "0": {"sampling": "random"},
    # Both special groups learn at 5 times the rate there, elsewhere at 2 and 3 times.
    "2": {"special_lr_factor": "5"},
    "4": {"sampling": "random"},
}

# What RWKV-LM's older generations assume where a flag is not given.
_STAGE_DEFAULTS: dict[str, dict[str, str]] = {
    "0": {"exit_tokens": "0", "epoch_steps": "1000", "epoch_count": "500"},
    # An open budget would become one pass over the data, which is a cosine.
    **{stage: {"exit_tokens": "0"} for stage in "1234"},
}
# What only RWKV-v4neo and v5 know, and the examples of v4neo say.
_V4NEO_FLAGS = {"pre_ffn", "head_size_a", "my_pile_edecay", "tiny_att_dim", "my_pos_emb"}
_V4NEO_STRATEGY = "ddp_find_unused_parameters_false"


def with_stage(flags: list[Argument], notices: list[str]) -> list[Argument]:
    """Returns the flags and what RWKV-LM's older generations do and assume at their stage."""
    given = {flag.name: flag.value for flag in flags}
    stage = given["train_stage"] or ""
    if stage != "0" and given.get("epoch_count", values.NONE) != values.NONE:
        notices.append(
            f"--epoch_count {given['epoch_count']} gives way to the length of the data, as in"
            f" RWKV-LM at --my_pile_stage {stage}; --exit_epoch ends a run earlier"
        )
        flags = [flag for flag in flags if flag.name != "epoch_count"]
    assumed = dict(_STAGE_MEANS.get(stage, {}))
    # Added as flags, old defaults would win over the file.
    if "config" not in given:
        assumed.update(_STAGE_DEFAULTS.get(stage, {}))
        # A positive budget ends the run by itself; the schedule's length is then unused.
        if values.is_positive(given.get("exit_tokens")):
            assumed.pop("epoch_count", None)
    return flags + [Argument(k, v) for k, v in assumed.items() if k not in given]


def is_v4neo(flags: Sequence[Argument]) -> bool:
    """Tells whether these are words of RWKV-v4neo's examples, which name no model.

    Later generations train from binidx data and say what they train.
    """
    given = {flag.name: flag.value for flag in flags}
    speaks = given.keys() & _V4NEO_FLAGS or given.get("strategy") == _V4NEO_STRATEGY
    return (
        bool(speaks)
        and given.get("data_type", "binidx") != "binidx"
        and not given.keys() & {"my_testing", "rwkv_version", "train_stage", "config"}
    )


def as_v4neo(flags: list[Argument], notices: list[str]) -> list[Argument]:
    """Returns the flags and what RWKV-v4neo assumes where they are silent."""
    given = {flag.name: flag.value for flag in flags}
    assumed = {**_STAGE_MEANS["0"], **_STAGE_DEFAULTS["0"]}
    if given.get("load_model", values.NONE) == values.NONE:
        assumed["rwkv_version"] = "4"
        notices.append("RWKV-4 is trained, RWKV-v4neo's default; --my_testing x070 asks for RWKV-7")
    return flags + [Argument(k, v) for k, v in assumed.items() if k not in given]
