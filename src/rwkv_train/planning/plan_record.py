"""A plan as one object of JSON, for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rwkv_train.config.run_length import tokens_per_step
from rwkv_train.planning.fit import Fitting
from rwkv_train.planning.plan import UNCERTAIN, Plan


def plan_values(
    plan: Plan, found: Sequence[Fitting] | None, remarks: Sequence[str]
) -> dict[str, Any]:
    """Returns the plan in plain values: bytes, FLOPs, seconds; what is not known is None.

    found: settings that fit; None: they were not searched.  remarks: as the text has them first.
    """
    record: dict[str, Any] = {
        "remarks": list(remarks),
        "model": dataclasses.asdict(plan.config.model),
        "run": _run(plan),
        "parameters": {kind.value: count for kind, count in plan.parameters.kinds.items()}
        | {"total": plan.parameters.total, "state": plan.parameters.state, "learnt": plan.learnt},
        "flops_per_token": {
            "parts": {name: part._asdict() for name, part in plan.flops.parts.items()},
            "forward": plan.flops.forward,
            "backward": plan.flops.backward,
            "recompute": plan.flops.recompute,
            "model": plan.flops.model_flops,
        },
        "memory": {**plan.memory.components(), "total": plan.memory.total},
        "host_memory": plan.host._asdict(),
        "device": _device(plan),
        "files": {**plan.files._asdict(), "most": plan.files.most},
        "copies": [
            {
                "folder": str(copy.place.folder),
                "on_partner": copy.place.on_partner,
                "states": copy.states,
                "bytes": copy.bytes,
            }
            for copy in plan.copies
        ],
        "data": None if plan.data is None else plan.data._asdict(),
        "step": None if plan.step is None else _step(plan),
        "tokens_per_second": plan.tokens_per_second,
        "cost": _cost(plan),
    }
    if found is not None:
        record["fit"] = [_fitting(run) for run in found]
    return record


def _run(plan: Plan) -> dict[str, Any]:
    config = plan.config
    hardware, train = config.hardware, config.train
    return {
        "ctx_len": config.data.ctx_len,
        "micro_bsz": train.micro_bsz,
        "accumulate_grad_batches": train.accumulate_grad_batches,
        "devices": plan.devices,
        "context_parallel": hardware.context_parallel,
        "strategy": hardware.strategy,
        "precision": hardware.precision,
        "autocast": hardware.autocast,
        "optimizer": config.optim.optimizer,
        "train_type": train.train_type,
        "tokens_per_step": tokens_per_step(config),
        "tokens": plan.tokens,
    }


def _device(plan: Plan) -> dict[str, Any]:
    card, share = plan.device.card, plan.share
    # Neither true nor false where the prediction may err to the other side.
    fits = None if share is None or abs(share - 1) <= UNCERTAIN else share < 1
    return {
        "name": plan.device.name,
        "memory": plan.device.memory,
        "rate": None if card is None else card.rate,
        "share": share,
        "fits": fits,
    }


def _step(plan: Plan) -> dict[str, Any]:
    step = plan.step
    assert step is not None
    return {
        **dataclasses.asdict(step),
        "seconds": step.seconds,
        "tokens_per_second": step.tokens_per_second,
        "mfu": step.mfu,
    }


def _cost(plan: Plan) -> dict[str, Any] | None:
    cost = plan.cost
    if cost is None:
        return None
    return {
        **dataclasses.asdict(cost),
        "seconds": cost.seconds,
        "gpu_hours": cost.gpu_hours,
        "kilowatt_hours": cost.energy,
        "money": cost.money,
    }


def _fitting(run: Fitting) -> dict[str, Any]:
    return {
        "flags": run.flags,
        "changes": dict(run.changes),
        "memory": run.memory.total,
        "tokens_per_second": None if run.step is None else run.step.tokens_per_second,
        "mfu": None if run.step is None else run.step.mfu,
    }
