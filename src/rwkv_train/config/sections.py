"""The sections of a configuration, whichever one: for code that treats them alike."""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

from rwkv_train.config.machine_schema import HardwareConfig, LogConfig, SafetyConfig
from rwkv_train.config.schema import (
    AdapterConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)

Section: TypeAlias = (
    ModelConfig
    | DataConfig
    | OptimConfig
    | TrainConfig
    | AdapterConfig
    | SafetyConfig
    | HardwareConfig
    | LogConfig
)


def sections_of(config: RunConfig) -> tuple[Section, ...]:
    """Returns the sections of a configuration in the order of the schema."""
    return tuple(getattr(config, entry.name) for entry in dataclasses.fields(config))
