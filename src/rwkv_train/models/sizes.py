"""Checks and defaults of sizes, used by every version's `complete` and `sizes_from_shapes`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rwkv_train.config.schema import ModelConfig
from rwkv_train.errors import ConfigError

Shapes = Mapping[str, tuple[int, ...]]

# Widths are multiples of it in every version; RWKV-LM refuses others.
WIDTH_UNIT = 32


def with_defaults(config: ModelConfig, **defaults: Any) -> ModelConfig:
    """`config` with the fields that are None set to `defaults`."""
    missing = {name: value for name, value in defaults.items() if getattr(config, name) is None}
    return replace(config, **missing)


def refuse_fields(config: ModelConfig, name: str, *fields: str) -> None:
    """ConfigError when a field that version `name` has no use for is not at its default."""
    for field in fields:
        value = getattr(config, field)
        if value != getattr(ModelConfig(), field):
            raise ConfigError(
                f"--{field} {value} was given, but {name} has no such part; leave it out"
            )


def require_equal_widths(config: ModelConfig, name: str) -> None:
    """ConfigError unless dim_att is n_embd: no checkpoint and no runtime knows anything else."""
    if config.dim_att != config.n_embd:
        raise ConfigError(
            f"--dim_att {config.dim_att} differs from --n_embd {config.n_embd}; in {name} the time "
            f"mix is as wide as the model, leave --dim_att out"
        )


def check_sizes(config: ModelConfig) -> None:
    """ConfigError unless every size that is set is possible."""
    for field in (
        "n_layer",
        "n_embd",
        "dim_att",
        "dim_ffn",
        "vocab_size",
        "head_size",
        "head_size_divisor",
        "rank_mix",
        "rank_decay",
        "rank_iclr",
        "rank_value",
        "rank_gate",
    ):
        value = getattr(config, field)
        if value is not None and value < 1:
            raise ConfigError(f"--{field} {value} is not possible, expected 1 or more")
    for field in ("n_embd", "dim_att", "dim_ffn"):
        value = getattr(config, field)
        if value is not None and value % WIDTH_UNIT:
            raise ConfigError(
                f"--{field} {value} is not a multiple of {WIDTH_UNIT}; {nearest(value)} is"
            )
    if config.head_size is not None and config.dim_att % config.head_size:
        raise ConfigError(
            f"--n_embd {config.dim_att} is not a multiple of --head_size {config.head_size}; "
            f"change one of them (the usual head size is 64)"
        )
    if config.head_qk < 0:
        raise ConfigError(f"--head_qk {config.head_qk} is not possible, expected 0 or more")
    if not 0 <= config.dropout < 1:
        raise ConfigError(f"--dropout {config.dropout} is not possible, expected 0 to below 1")


def nearest(width: int) -> int:
    """The possible width closest to `width`."""
    return max(WIDTH_UNIT, (width + WIDTH_UNIT // 2) // WIDTH_UNIT * WIDTH_UNIT)


def width_times(factor: float, width: int) -> int:
    """factor * width, rounded down to a possible width."""
    return int(factor * width) // WIDTH_UNIT * WIDTH_UNIT


def matrix(shapes: Shapes, key: str) -> tuple[int, int]:
    """Rows and columns of the tensor `key`; ConfigError when it is missing or no matrix."""
    shape = tensor_shape(shapes, key)
    if len(shape) != 2:
        raise ConfigError(f"the checkpoint's {key} has shape {list(shape)}, expected a matrix")
    return shape[0], shape[1]


def tensor_shape(shapes: Shapes, key: str) -> tuple[int, ...]:
    """Shape of the tensor `key`; ConfigError when it is missing."""
    if key not in shapes:
        raise ConfigError(f"the checkpoint has no tensor {key}, so its sizes cannot be read")
    return tuple(shapes[key])
