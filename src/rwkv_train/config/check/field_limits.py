"""Faults of single fields: a number that is not finite or beyond the limits in the schema."""

from __future__ import annotations

import dataclasses
import math
import typing

from rwkv_train.config.limits import Limit, MultipleOf
from rwkv_train.config.schema import ModelConfig
from rwkv_train.config.sections import Section
from rwkv_train.config.versions import (
    DEFAULT_VERSION,
    VERSIONS,
    WIDTH_UNIT,
    version_row,
    versions_with,
)
from rwkv_train.errors import ConfigError

# RWKV-LM's scripts give its default head size to RWKV-4 as well, which has no heads.
_USUAL_HEAD_SIZE = 64
_UNIT = MultipleOf(WIDTH_UNIT)


def check_limits(section: Section) -> None:
    """Raises ConfigError for a value out of its limits; a field that is None is skipped."""
    limits = _limits(type(section))
    for entry in dataclasses.fields(section):
        value = getattr(section, entry.name)
        # AtLeast and Above let infinity through, and a field without limits lets NaN through.
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"--{entry.name} {value} is not a finite number")
        for limit in limits.get(entry.name, ()) if value is not None else ():
            fault = limit.fault(value)
            if fault is not None:
                raise ConfigError(f"--{entry.name} {value}{fault}")


def check_version(model: ModelConfig) -> None:
    """Raises ConfigError for an unknown version, and for a size or setting that it does not have.

    Without a version nothing is checked.
    """
    version = model.rwkv_version
    if version is None:
        return
    # First: an unknown version is in no list below, so the first size given would be blamed.
    version_row(version)
    for entry in dataclasses.fields(model):
        value, versions = getattr(model, entry.name), versions_with(entry.name)
        # A flag given at its default cannot be told from one left out: both pass.
        harmless = (entry.default, _USUAL_HEAD_SIZE if entry.name == "head_size" else None)
        if version not in versions and value not in harmless:
            raise ConfigError(
                f"--{entry.name} {value}: RWKV-{version} has no such size, only RWKV-"
                f"{', '.join(versions)}; leave it out"
            )


def check_width(model: ModelConfig) -> None:
    """Raises ConfigError where the multiple that a width's limit names is none of the head size.

    An unknown version has no heads to look at.
    """
    version = VERSIONS.get(model.rwkv_version or DEFAULT_VERSION)
    for name in ("n_embd", "dim_att") if version and version.has("head_size") else ():
        width = getattr(model, name)
        fault = None if width is None or width < 1 else _UNIT.fault(width)
        head_size = model.head_size or _USUAL_HEAD_SIZE
        if fault is not None and _UNIT.nearest(width) % head_size:
            fitting = near_multiples(width, math.lcm(WIDTH_UNIT, head_size))[0]
            raise ConfigError(
                f"--{name} {width}{fault} with --head_size {WIDTH_UNIT}, or {fitting} with heads"
                f" of {head_size}"
            )


def near_multiples(width: int, unit: int) -> list[int]:
    """Returns the multiples of `unit` below and above a width that is none, the nearest first."""
    below = width // unit * unit
    both = [number for number in (below, below + unit) if number > 0]
    return sorted(both, key=lambda number: abs(number - width))


def _limits(section: type[Section]) -> dict[str, tuple[Limit, ...]]:
    """Returns the limits by field, as the schema's annotations name them."""
    # Without the extras typing strips Annotated, and the limits with it.
    hints = typing.get_type_hints(section, include_extras=True)
    return {
        name: tuple(extra for extra in hint.__metadata__ if isinstance(extra, Limit))
        for name, hint in hints.items()
        if typing.get_origin(hint) is typing.Annotated
    }
