"""The RWKV versions, a row each: everything about a version that needs neither torch nor files.

A new version is a model file, an operator folder and a row here: the choices of --rwkv_version and
of RWKV-LM's --my_testing, the checks of sizes, their defaults and the registry of models read it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from rwkv_train.errors import ConfigError

# Widths and ranks are multiples of it in every version; RWKV-LM refuses other widths.
WIDTH_UNIT = 32

# Default of a size as a function of the model's width n_embd.
SizeRule = Callable[[int], int]


@dataclass(frozen=True)
class Conventions:
    """The habits of one generation of RWKV-LM.

    generation: the folder of RWKV-LM they are taken from.
    adam_eps: default of --adam_eps.
    warmup_floor: rate factor of the first warmup step, from which the ramp rises to 1.
    resume_warmup: stage -> steps of warmup after a resume with an empty optimizer.
    """

    generation: str
    adam_eps: float
    warmup_floor: float
    resume_warmup: Mapping[int, int]

    def warmup_after_resume(self, stage: int | None) -> int:
        """Returns the steps of warmup at `stage`; None resumes as stage 3 does, the normal one."""
        return self.resume_warmup[3 if stage is None else stage]


@dataclass(frozen=True)
class Version:
    """One row.

    module: file in `rwkv_train.models`; operator: folder in `rwkv_train.ops`.
    layer_operators: such folders of the operators that its layers call besides; without the gate of
        a residual sum that dropout acts on.
    rwkv_lm_names: values of RWKV-LM's --my_testing that mean this version, the exact name first.
    conventions: how RWKV-LM trains it.
    sizes: fields of ModelConfig whose default follows from the width.
    settings: further fields of ModelConfig that not every version has; 0 or 8 by default.
    wide_time_mix: the time mix may have another width (dim_att) than the model.
    """

    module: str
    operator: str
    rwkv_lm_names: tuple[str, ...]
    conventions: Conventions
    sizes: Mapping[str, SizeRule]
    settings: tuple[str, ...] = ()
    wide_time_mix: bool = False
    layer_operators: tuple[str, ...] = ("norm_shift", "squared_relu")

    def has(self, field: str) -> bool:
        """Tells whether the version has this size or setting of ModelConfig."""
        return field in self.sizes or field in self.settings


def _times(factor: float) -> SizeRule:
    """Returns the rule: `factor` times the width, rounded down to a possible width."""
    return lambda width: int(factor * width) // WIDTH_UNIT * WIDTH_UNIT


def _root(factor: float) -> SizeRule:
    """Returns the rule: `factor` times the width's root, rounded to a multiple of 32, at least 32.

    Halves go to the even multiple. Source: RWKV-LM, RWKV-v7/train_temp.
    """
    return lambda width: max(WIDTH_UNIT, WIDTH_UNIT * round(factor * width**0.5 / WIDTH_UNIT))


def _always(size: int) -> SizeRule:
    """Returns the rule: `size` at every width."""
    return lambda width: size


# Equal weights, data and flags give RWKV-LM's loss curves.  Its other differences need no entry:
# which tensors learn at which rate stands in the version's own parameter table, v4neo's fixed
# gradient clip of 1.0 is everyone's default, and v7's lack of a step-based schedule is a gap, not
# a rule.
_V4NEO = Conventions("RWKV-v4neo", 1e-8, 0.2, MappingProxyType({2: 10, 3: 30, 4: 30}))
_V5 = Conventions("RWKV-v5", 1e-8, 0.01, MappingProxyType({2: 10, 3: 30, 4: 30}))
_V7 = Conventions("RWKV-v7/train_temp", 1e-18, 0.01, MappingProxyType({2: 10, 3: 10, 4: 10}))

VERSIONS: Mapping[str, Version] = MappingProxyType(
    {
        "4": Version(
            module="rwkv4",
            operator="wkv4",
            layer_operators=("norm_shift", "squared_relu", "sigmoid_gate"),
            # v4neo builds an RWKV-4 where --my_testing is not given.
            rwkv_lm_names=("",),
            conventions=_V4NEO,
            sizes={"dim_ffn": lambda width: 4 * width},
            settings=("head_qk",),
            # RWKV-LM's x060 and x070 reshape with n_embd whatever --dim_att says.
            wide_time_mix=True,
        ),
        "5": Version(
            module="rwkv5",
            operator="wkv5",
            layer_operators=("norm_shift", "squared_relu", "head_norm_gate"),
            # r2r3r4 is v4neo's name of the released RWKV-5: bonus per head, output gate, 3.5x
            # channel mix.
            rwkv_lm_names=("x052", "r2r3r4"),
            conventions=_V5,
            sizes={"dim_ffn": _times(3.5), "head_size": _always(64)},
            settings=("head_size_divisor", "head_qk"),
        ),
        "6": Version(
            module="rwkv6",
            operator="wkv6",
            layer_operators=("norm_shift", "split_tanh", "squared_relu", "head_norm_gate"),
            rwkv_lm_names=("x060",),
            conventions=_V5,
            sizes={
                "dim_ffn": _times(3.5),
                "head_size": _always(64),
                "rank_mix": _always(32),
                "rank_decay": _always(64),
            },
            settings=("head_size_divisor",),
        ),
        "7": Version(
            module="rwkv7",
            operator="wkv7",
            layer_operators=(
                *("norm_shift", "split_tanh", "squared_relu", "keys", "value_residual"),
                "head_norm_gate",
            ),
            rwkv_lm_names=("x070",),
            conventions=_V7,
            sizes={
                # RWKV-LM's x070 has this hidden size whatever --dim_ffn its argument dump shows.
                "dim_ffn": lambda width: 4 * width,
                "head_size": _always(64),
                "rank_decay": _root(2.5),
                "rank_iclr": _root(2.5),
                "rank_value": _root(1.7),
                "rank_gate": _root(5.0),
            },
            settings=("head_size_divisor",),
        ),
    }
)
DEFAULT_VERSION = "7"


def version_row(name: str) -> Version:
    """Returns the row of version `name`; raises ConfigError when there is none."""
    if name not in VERSIONS:
        raise ConfigError(f"RWKV version {name!r} is unknown, expected {', '.join(VERSIONS)}")
    return VERSIONS[name]


def versions_with(field: str) -> tuple[str, ...]:
    """Returns the versions that have this size or setting; all of them if none names it."""
    return tuple(name for name, row in VERSIONS.items() if row.has(field)) or tuple(VERSIONS)
