"""Faults in the settings of a mixture that show in the configuration alone."""

from __future__ import annotations

from rwkv_train.config.mixture_list import mixture_components, weights_change
from rwkv_train.config.schema import DataConfig
from rwkv_train.errors import ConfigError


def check_mixture(data: DataConfig) -> None:
    """Raises ConfigError for weights and settings that do not go together."""
    parts = mixture_components(data.data_file)
    if data.mix_tokens is not None and not weights_change(parts):
        raise ConfigError(
            f"--mix_tokens {data.mix_tokens} says over how many tokens weights change, but those of"
            f" --data_file {data.data_file} do not; write PREFIX:BEGIN..END, or leave it out"
        )
    if not parts:
        return
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
