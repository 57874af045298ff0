"""Tells before anything is written that a run asks for a Python package that is not installed.

Everything that is not needed by every run is an extra of pyproject.toml. A missing plot library
refuses nothing (`reporting/plot.py`); that of the 8-bit optimizer is looked for by `discover`,
because the choice of the optimizer depends on it.
"""

from __future__ import annotations

import importlib.util

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.errors import ConfigError, missing_package


def check_packages(config: ResolvedConfig) -> None:
    """Raises ConfigError when the strategy or the log of a resolved run lacks its package."""
    if config.train.train_stage == 1:
        # Initial weights are written by torch alone, with the flags of the run that follows.
        return
    strategy, project = config.hardware.strategy, config.log.wandb
    # Looked up and not imported: an import of DeepSpeed costs seconds, and reads the environment
    # that `prepare_libraries` sets afterwards.
    if strategy.startswith("deepspeed") and importlib.util.find_spec("deepspeed") is None:
        message = missing_package(f"--strategy {strategy}", "deepspeed", "deepspeed")
        raise ConfigError(f"{message}; or use --strategy ddp")
    if project is not None and importlib.util.find_spec("wandb") is None:
        message = missing_package(f"--wandb {project}", "wandb", "wandb")
        raise ConfigError(f'{message}; or give --wandb "" for none')
