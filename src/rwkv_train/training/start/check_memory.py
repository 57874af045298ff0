"""Compares, before anything is allocated, what a run will hold with the memory there is.

What is more than the memory by more than the plan may err is refused, with changes that would fit;
what comes near it is told in a note; `--skip_memory_check 1` lets everything start.
"""

from __future__ import annotations

import torch

from rwkv_train.config.resolved import ResolvedConfig, ResolvedModel
from rwkv_train.errors import ConfigError
from rwkv_train.planning.memory import memory_plan
from rwkv_train.planning.parameter_table import is_planned, parameter_table
from rwkv_train.training.environment import local_rank
from rwkv_train.training.start.memory_forecast import (
    MemoryForecast,
    bytes_against,
    parts_words,
    size_words,
)
from rwkv_train.training.start.memory_limits import MemoryLimit, host_limits

# Bytes of a tensor fit 63 bits, and its weights are fp32 at first.
_MOST_PARAMETERS = 2**61


def check_memory(config: ResolvedConfig) -> MemoryForecast:
    """Returns the forecast of a run; raises ConfigError when it cannot fit, before it allocates.

    Every process asks for itself: those of a machine share its memory, and each has its own device.
    """
    if not is_planned(config.model.rwkv_version):
        return MemoryForecast(config, None, None, 0)
    parameters = parameter_table(config.model).total
    if parameters >= _MOST_PARAMETERS:
        raise ConfigError(
            f"{_sizes(config.model)}: no memory holds tensors of that size; take a smaller model"
        )
    plan = memory_plan(config)
    processes = MemoryForecast(config, plan, None, parameters).processes
    nearest = max(
        _limits(config, processes),
        key=lambda limit: bytes_against(config, plan, limit, processes) / max(1, limit.free),
        default=None,
    )
    forecast = MemoryForecast(config, plan, nearest, parameters)
    if not (forecast.may_fit() or config.hardware.skip_memory_check):
        raise ConfigError(_refusal(forecast))
    return forecast


def _refusal(forecast: MemoryForecast) -> str:
    config, limit = forecast.config, forecast.limit
    assert limit is not None, "without one nothing is refused"
    batch = f" --micro_bsz {config.train.micro_bsz} --ctx_len {config.data.ctx_len}"
    if config.train.train_stage == 1:
        batch = ""
    return (
        f"{_sizes(config.model)}{batch}: {forecast.parameters / 1e6:,.1f} M parameters need "
        f"{forecast.size()} ({parts_words(forecast.counted())}), and {limit.name} leaves "
        f"{size_words(limit.free)}; {_remedy(forecast)}; --skip_memory_check 1 starts all the same"
    )


def _remedy(forecast: MemoryForecast) -> str:
    config = forecast.config
    runs = [] if config.train.train_stage == 1 else forecast.smaller()
    if runs:
        return f"take {forecast.words(runs)}"
    if config.train.train_stage == 1 or config.hardware.accelerator == "cpu":
        return "take a smaller model"
    more = "" if config.hardware.strategy.startswith("deepspeed_stage_3") else " with --strategy "
    return f"take a smaller model, or more GPUs{more and more + 'deepspeed_stage_3'}"


def _limits(config: ResolvedConfig, processes: int) -> list[MemoryLimit]:
    """Returns all limits of what this process will hold."""
    if config.hardware.accelerator == "cpu" or config.train.train_stage == 1:
        return host_limits(processes)
    index = local_rank()
    # What is offloaded lies in the host's memory.
    if "offload" in config.hardware.strategy or index >= torch.cuda.device_count():
        return []
    # Not all of the card: others may use it too.
    free, _ = torch.cuda.mem_get_info(index)
    return [MemoryLimit(free, f"GPU {index}", is_shared=False)]


def _sizes(model: ResolvedModel) -> str:
    names = ("n_layer", "n_embd", "dim_ffn", "vocab_size")
    return " ".join(f"--{name} {getattr(model, name)}" for name in names)
