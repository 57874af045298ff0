"""Translates values of RWKV-LM's flags: one small rule for each kind of value.

A rule takes the text behind a flag and returns our text, with a notice where the user should know;
it raises ValueError with the reason, and what to do, for a value that is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import get_args

from rwkv_train.config.choices import Strategy
from rwkv_train.config.versions import VERSIONS

Ruled = tuple[str, str | None]
Rule = Callable[[str], Ruled]

NONE = "None"


def same(value: str) -> Ruled:
    """Returns the value as it stands."""
    return value, None


def whole(value: str) -> Ruled:
    """Returns a whole number as it stands; a fault here names the flag as it was given."""
    try:
        int(value)
    except ValueError:
        raise ValueError("expected a whole number") from None
    return value, None


def none_if(*words: str) -> Rule:
    """Returns the rule that takes `words` for "not given"; numbers are compared as numbers."""

    def rule(value: str) -> Ruled:
        return (NONE if is_one_of(value, words) else value), None

    return rule


def none_if_negative(value: str) -> Ruled:
    """Translates RWKV-LM's -1, which means "automatic"."""
    # What is no number goes on unchanged: `load` says what the flag expects.
    number = _number(value)
    return (NONE if number is not None and number < 0 else value), None


def none_if_not_positive(value: str) -> Ruled:
    """Translates RWKV-LM's 0 (or -1), which means "automatic" or "off"."""
    number = _number(value)
    return (NONE if number is not None and number <= 0 else value), None


def one_if_none(value: str) -> Ruled:
    """Translates Lightning's None, which means 1."""
    return ("1" if value == NONE else value), None


def zero_if_negative(value: str) -> Ruled:
    """Translates a negative number, which means 0."""
    return str(max(0, int(whole(value)[0]))), None


def positive_is_true(value: str) -> Ruled:
    """Translates a number into a switch: any positive one switches on."""
    number = _number(value)
    return (value if number is None else str(number > 0)), None


def zero_or_one(value: str) -> Ruled:
    """Checks a switch of which RWKV-LM reads only the exact value 1."""
    number = _number(value)
    if number is not None and number not in (0, 1):
        raise ValueError("only 1 has an effect in RWKV-LM; give 0 or 1")
    return value, None


def table(values: Mapping[str, str], refused: Mapping[str, str], otherwise: str) -> Rule:
    """Returns the rule that looks up our value, or the reason of a refusal, else `otherwise`."""

    def rule(value: str) -> Ruled:
        if value in values:
            return values[value], None
        raise ValueError(refused.get(value, otherwise))

    return rule


def noticed(values: Mapping[str, str], then: Rule) -> Rule:
    """Returns the rule that looks up our value and says so; `then` rules all other words."""

    def rule(value: str) -> Ruled:
        if value in values:
            return values[value], f"{value or 'the empty text'} is read as {values[value]}"
        return then(value)

    return rule


def is_one_of(value: str, words: tuple[str, ...]) -> bool:
    """Tells whether `value` is one of `words`, numbers compared as numbers (0.0 is 0)."""
    # Without the test for None all words that are no numbers would be equal.
    number = _number(value)
    return value in words or (number is not None and number in map(_number, words))


def my_exit(value: str) -> Ruled:
    """Translates the number of the last mini-epoch; RWKV-LM's 99999999 means no limit."""
    # RWKV-LM ends at the first mini-epoch whose number is at least this, so a negative one means 0.
    number = int(whole(value)[0])
    return (NONE if number == 99999999 else str(max(0, number))), None


def devices(value: str) -> Ruled:
    """Translates a number of processes per node; -1 and auto mean all."""
    if value in ("auto", "-1"):
        return NONE, None
    if "," in value:
        raise ValueError(
            "a list of device numbers is not understood; give how many, and choose which with"
            f" CUDA_VISIBLE_DEVICES={value.strip(',')} in front of the command"
        )
    return value, None


# RWKV-LM's exact names of the versions; the empty one is RWKV-4.
_EXACT = [row.rwkv_lm_names[0] for row in VERSIONS.values()]
_SPELLED = [name for name in _EXACT if name]
_NAMES = (
    f"the exact names are {', '.join(_SPELLED[:-1])} and {_SPELLED[-1]} (and the empty text for"
    " RWKV-4)"
)
_VARIANT = f"an experiment that no other runtime reads; {_NAMES}"
_PREVIEW = "a preview of RWKV-5 from before its release; the released RWKV-5 is r2r3r4 or x052"
_WIDE = "-f4 asks for a channel mix of 4 x n_embd; leave it out and give that number as --dim_ffn"

my_testing: Rule = table(
    {theirs: ours for ours, row in VERSIONS.items() for theirs in row.rwkv_lm_names},
    {
        **dict.fromkeys(("x060a", "x060b", "x060c", "g", "a", "x052g", "x060g"), _VARIANT),
        **dict.fromkeys(("r", "r2", "r3", "r4", "r2r3", "r2r4", "r3r4"), _PREVIEW),
        **dict.fromkeys((f"{name}-f4" for name in _EXACT), _WIDE),
        "mamba": f"not an RWKV model; {_NAMES}",
    },
    f"unknown version; {_NAMES}",
)

my_pile_stage: Rule = table({stage: stage for stage in "01234"}, {}, "give 0, 1, 2, 3 or 4")

train_type: Rule = table(
    {"": "all", "all": "all", "states": "states", "lora": "lora"}, {}, "give all, states or lora"
)

data_type: Rule = table(
    {name: name for name in ("binidx", "numpy", "uint16", "utf-8", "utf-16le", "dummy")},
    {"wds_img": "the image experiment of RWKV-v4neo is not part of this trainer"},
    "give binidx, numpy, uint16, utf-8, utf-16le or dummy",
)

_STRATEGIES = get_args(Strategy)

strategy: Rule = noticed(
    # torch's DDP looks for unused parameters only when told to.
    {"ddp_find_unused_parameters_false": "ddp"},
    table(
        {**{name: name for name in _STRATEGIES}, NONE: "auto"},
        {"deepspeed": "which ZeRO stage? give deepspeed_stage_1, 2 or 3"},
        f"give one of {', '.join(_STRATEGIES)}",
    ),
)

# RWKV-LM itself knows only the four precisions of the second table.
precision: Rule = noticed(
    {
        "32": "fp32",
        "32-true": "fp32",
        "full": "fp32",
        "16": "fp16",
        "16-mixed": "fp16",
        "half": "fp16",
        "bf16-mixed": "bf16",
    },
    table(
        {name: name for name in ("fp32", "tf32", "fp16", "bf16", NONE)},
        {
            **dict.fromkeys(
                ("16-true", "bf16-true"), "training keeps fp32 master weights; give fp16 or bf16"
            ),
            **dict.fromkeys(("64", "64-true", "double"), "fp64 is not trained in; give fp32"),
        },
        "give fp32, tf32, fp16 or bf16",
    ),
)

accelerator: Rule = noticed(
    {"cuda": "gpu"},
    table(
        {"auto": "auto", "cpu": "cpu", "gpu": "gpu", "None": "auto"},
        dict.fromkeys(("tpu", "ipu", "hpu", "mps"), "only cpu and gpu (CUDA) are supported"),
        "give auto, cpu or gpu",
    ),
)


def is_positive(value: str | None) -> bool:
    """Tells whether `value` is a number above 0."""
    number = None if value is None else _number(value)
    return number is not None and number > 0


def _number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None
