"""Compares, before anything is allocated, what a run will hold with the memory there is.

What is more than the memory by more than the plan may err is refused, with changes that would fit;
what is near it is warned of; `--skip_memory_check 1` lets everything start.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rwkv_train.config.check.field_rules import check_fields
from rwkv_train.config.resolved import ResolvedConfig, ResolvedModel
from rwkv_train.errors import ConfigError, TrainerError
from rwkv_train.planning.memory import MemoryPlan, memory_plan
from rwkv_train.planning.parameter_table import is_planned, parameter_table
from rwkv_train.planning.smaller_settings import SmallerRun, smaller_runs
from rwkv_train.training.environment import local_rank
from rwkv_train.training.start.memory_limits import MemoryLimit, host_limits

# The plan's error is below a tenth: benchmarks/RESULTS.md.
ERROR = 0.1
_MOST_BYTES = 2**63


@dataclass(frozen=True)
class MemoryForecast:
    """What a run will take, and of what.

    plan: None for a version whose tensors are not listed.
    limit: the one that is nearest; None where none is known.
    processes: of the run on this machine.
    """

    plan: MemoryPlan | None
    limit: MemoryLimit | None
    processes: int
    parameters: int

    def share(self, plan: MemoryPlan) -> float:
        """Returns what of the memory there is a plan takes; 0 where that is not known."""
        limit = self.limit
        if limit is None:
            return 0.0
        return _needed(plan, limit, self.processes) / max(1, limit.free)

    def fits(self, plan: MemoryPlan) -> bool:
        """Tells whether a plan fits for certain."""
        return self.share(plan) <= 1 - ERROR

    def line(self) -> str:
        """Returns the header's line."""
        if self.plan is None:
            return "not predicted: the tensors of this version are not listed"
        largest = sorted(self.plan.components().items(), key=lambda part: -part[1])[:4]
        parts = ", ".join(f"{name.replace('_', ' ')} {_gb(size)}" for name, size in largest if size)
        each = f" in each of {self.processes} processes" if self.processes > 1 else ""
        there = f" of {_gb(self.limit.free)}" if self.limit is not None else ""
        return f"{_gb(self.plan.total)}{each}{there} at the worst moment: {parts}"


def check_memory(config: ResolvedConfig, *, refuses: bool = True) -> MemoryForecast:
    """Returns the forecast of a run; raises ConfigError when it cannot fit.

    refuses: False where the user has said that it should start all the same.
    """
    model = config.model
    if not is_planned(model.rwkv_version):
        return MemoryForecast(None, None, config.hardware.devices, 0)
    parameters = parameter_table(model).total
    if 4 * parameters >= _MOST_BYTES:
        raise ConfigError(
            f"{_sizes(model)}: no memory holds tensors of that size; take a smaller model"
        )
    plan = memory_plan(config)
    processes = 1 if config.train.train_stage == 1 else config.hardware.devices
    limits = _limits(config, processes)
    limit = max(
        limits, key=lambda each: _needed(plan, each, processes) / max(1, each.free), default=None
    )
    forecast = MemoryForecast(plan, limit, processes, parameters)
    if refuses and forecast.share(plan) > 1 + ERROR:
        raise ConfigError(_refusal(config, forecast))
    return forecast


def memory_note(forecast: MemoryForecast) -> list[str]:
    """Returns a line for a run that may, or may not, fit."""
    plan, limit = forecast.plan, forecast.limit
    if plan is None or limit is None or forecast.share(plan) <= 1 - ERROR:
        return []
    return [
        f"memory may not suffice: {_gb(_needed(plan, limit, forecast.processes))} are predicted, "
        f"with an error of up to {ERROR:.0%}, and {limit.name} leaves {_gb(limit.free)}; "
        "docs/out_of_memory.md tells what takes less"
    ]


def suggestions(config: ResolvedConfig, forecast: MemoryForecast) -> list[SmallerRun]:
    """Returns the three cheapest changes with which the run fits for certain."""
    return smaller_runs(config, forecast.fits, allowed)


def allowed(config: ResolvedConfig) -> bool:
    """Tells whether the settings of a configuration go together."""
    try:
        check_fields(config.as_given())
    except TrainerError:
        return False
    return True


def told(runs: list[SmallerRun]) -> str:
    """Returns changes of flags as people are told them."""
    return ", or ".join(f"{run.flags} ({_gb(run.plan.total)})" for run in runs)


def largest_part(plan: MemoryPlan) -> str:
    """Returns the largest component of a plan, with its size."""
    name, size = max(plan.components().items(), key=lambda part: part[1])
    return f"{name.replace('_', ' ')} {_gb(size)}"


def _refusal(config: ResolvedConfig, forecast: MemoryForecast) -> str:
    plan, limit = forecast.plan, forecast.limit
    assert plan is not None and limit is not None, "without them nothing is refused"
    parts = sorted(plan.components().items(), key=lambda part: -part[1])
    named = ", ".join(f"{name.replace('_', ' ')} {_gb(size)}" for name, size in parts[:3])
    each = f" in each of {forecast.processes} processes" if forecast.processes > 1 else ""
    runs = suggestions(config, forecast)
    remedy = (
        f"take {told(runs)}" if runs else "no change of the batch suffices: take a smaller model"
    )
    if not runs and config.hardware.devices == 1 and config.train.train_stage != 1:
        remedy += ", or more devices with --strategy deepspeed_stage_3"
    return (
        f"{_sizes(config.model)} --micro_bsz {config.train.micro_bsz} --ctx_len "
        f"{config.data.ctx_len}: {forecast.parameters / 1e9:,.2f} billion parameters need "
        f"{_gb(plan.total)}{each} ({named}), and {limit.name} leaves {_gb(limit.free)}; {remedy}; "
        "--skip_memory_check 1 starts all the same"
    )


def _needed(plan: MemoryPlan, limit: MemoryLimit, processes: int) -> int:
    """Returns the bytes that count against a limit."""
    # Addresses of libraries are taken off the limit.
    bytes_each = plan.allocated if limit.counts_addresses else plan.total
    return bytes_each * (processes if limit.is_shared else 1)


def _limits(config: ResolvedConfig, processes: int) -> list[MemoryLimit]:
    if config.hardware.accelerator == "cpu" or config.train.train_stage == 1:
        return host_limits(processes)
    if "offload" in config.hardware.strategy or not torch.cuda.is_available():
        return []
    index = local_rank()
    if index >= torch.cuda.device_count():
        return []
    free, _ = torch.cuda.mem_get_info(index)
    return [MemoryLimit(free, f"GPU {index}", is_shared=False)]


def _sizes(model: ResolvedModel) -> str:
    names = ("n_layer", "n_embd", "dim_ffn", "vocab_size")
    return " ".join(f"--{name} {getattr(model, name)}" for name in names)


def _gb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 95e6 else f"{size / 1e6:,.0f} MB"
