"""The file of what a run was predicted to take, which reports read: PROJ_DIR/plan.json."""

from __future__ import annotations

from typing import Any

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.planning.flops import flops_per_token
from rwkv_train.training.start.memory_forecast import MemoryForecast


def forecast_record(config: ResolvedConfig, forecast: MemoryForecast) -> dict[str, Any]:
    """Returns what the file holds, each None where it is not known.

    memory: bytes of one process at the worst moment of a step, by component; total: their sum;
    limit: what the processes of a machine, or one on its device, may take; flops_per_token: of a
    forward and a backward pass; parameters: of the model.
    """
    plan, limit = forecast.plan, forecast.limit
    if plan is None:
        return dict.fromkeys(("memory", "total", "limit", "flops_per_token", "parameters"))
    return {
        "memory": plan.components(),
        "total": plan.total,
        "limit": None if limit is None else limit.free,
        "flops_per_token": flops_per_token(config).model_flops,
        "parameters": forecast.parameters,
    }
