"""Faults in the settings of what a model is asked while it trains."""

from __future__ import annotations

from rwkv_train.config.machine_schema import LogConfig
from rwkv_train.config.schema import RunConfig, listed
from rwkv_train.errors import ConfigError


def check_live(config: RunConfig) -> None:
    """Raises ConfigError for samples and tasks that cannot be had, or settings without them."""
    log = config.log
    # sample_tokens is not None by default, so only another number was asked for.
    tokens = None if log.sample_tokens == LogConfig.sample_tokens else log.sample_tokens
    for name, value, owner in (
        ("eval_include", log.eval_include, "eval_tasks"),
        ("eval_limit", log.eval_limit, "eval_tasks"),
        ("sample_prompts", log.sample_prompts, "sample_every"),
        ("sample_tokens", tokens, "sample_every"),
    ):
        if value is not None and getattr(log, owner) is None:
            raise ConfigError(f"--{name} {value} needs --{owner}, which is not given")
    if log.eval_tasks is not None and not listed(log.eval_tasks):
        raise ConfigError(
            f"--eval_tasks {log.eval_tasks!r} names no task; give names with commas between"
        )
    for name in ("eval_tasks", "sample_every"):
        value = getattr(log, name)
        if value is not None:
            _check_possible(config, f"--{name} {value}")


def _check_possible(config: RunConfig, flag: str) -> None:
    strategy = config.hardware.strategy
    if strategy.startswith("deepspeed_stage_3"):
        raise ConfigError(
            f"{flag}: rank zero asks the model alone, which --strategy {strategy} does not let it,"
            " since every rank holds a part of the weights; use --strategy deepspeed_stage_2, or"
            " rwkv-eval on the saved checkpoints"
        )
    if config.model.head_qk:
        raise ConfigError(
            f"{flag}: a model with head_qk has no recurrent form and cannot be asked; leave it out"
        )
