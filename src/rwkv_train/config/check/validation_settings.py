"""Faults in the settings of validation that show in the configuration alone."""

from __future__ import annotations

from rwkv_train.config.schema import DataConfig, TrainConfig
from rwkv_train.errors import ConfigError


def check_validation(data: DataConfig, train: TrainConfig) -> None:
    """Raises ConfigError for settings of a validation that cannot take place."""
    if data.val_data_file is not None and data.val_split is not None:
        raise ConfigError(
            f"--val_data_file {data.val_data_file} and --val_split {data.val_split:g} both say what"
            " to validate on; leave one out"
        )
    if data.val_data_file is None and data.val_split is None:
        _check_absent(data, train)
    if data.val_split is not None:
        _check_split(data, data.val_split)


def _check_absent(data: DataConfig, train: TrainConfig) -> None:
    given = {
        # Not None by default, so only another number was asked for.
        "val_samples": data.val_samples != DataConfig.val_samples and data.val_samples,
        "val_ctx_len": data.val_ctx_len,
        "val_every": train.val_every,
        # As a number, so that the message shows --save_best 1 and not --save_best True.
        "save_best": int(train.save_best),
    }
    for name, value in given.items():
        if value:
            raise ConfigError(
                f"--{name} {value} needs something to validate on: --val_data_file PREFIX, or"
                " --val_split 0.01 to hold out a hundredth of the training data"
            )


def _check_split(data: DataConfig, split: float) -> None:
    if split >= 1 and split != int(split):
        raise ConfigError(
            f"--val_split {split:g}: give a share below 1, or a whole number of samples of"
            f" --ctx_len {data.ctx_len}"
        )
    if data.sampling == "random" or data.data_type != "binidx":
        how = "--sampling random" if data.sampling == "random" else f"--data_type {data.data_type}"
        raise ConfigError(
            f"--val_split {split:g} keeps slots of the permutation from training, but {how} reads"
            " at random positions; use binidx data with --sampling permutation, or --val_data_file"
        )
    if data.sample_offset:
        raise ConfigError(
            f"--val_split {split:g} with --sample_offset {data.sample_offset}: an offset that"
            " changes would move training samples into the held-out ones; leave one out"
        )
