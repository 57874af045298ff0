"""Faults in the settings of low-rank adapters; which matrices exist is known to `models` only."""

from __future__ import annotations

import dataclasses

from rwkv_train.config.schema import AdapterConfig, TrainConfig, listed
from rwkv_train.errors import ConfigError

# What --lora_train may name; `models.adapters` says which tensors each one stands for.
TRAINED_FULLY = ("time", "ln", "emb", "head")


def check_adapter(adapter: AdapterConfig, train: TrainConfig) -> None:
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
        if word not in TRAINED_FULLY:
            raise ConfigError(
                f"--lora_train {adapter.lora_train}: {word!r} is unknown, expected some of "
                f"{', '.join(TRAINED_FULLY)} with commas between"
            )
    if adapter.lora_targets is not None and not listed(adapter.lora_targets):
        raise ConfigError(
            "--lora_targets names no matrix; give names such as att.key,att.value, or leave it "
            "out for all large matrices"
        )
