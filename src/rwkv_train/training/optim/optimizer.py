"""The optimizer over the model's parameter groups: AdamW, Muon with AdamW, or Adam in 8 bits."""

from __future__ import annotations

from typing import Any

import torch

from rwkv_train.config.resolved import ResolvedHardware, ResolvedOptim
from rwkv_train.models.parameters import ParameterGroup
from rwkv_train.training.optim.muon import MuonWithAdamW


def build_optimizer(
    groups: list[ParameterGroup], optim: ResolvedOptim, hardware: ResolvedHardware
) -> torch.optim.Optimizer:
    """Returns the resolved optimizer; its groups carry `lr_factor` and the decay to be scheduled.

    The rates are set before every step (`set_rates`). AdamW with decay 0 is plain Adam, which is
    what RWKV-LM uses then.
    """
    options = {
        # replaced before the first step; a real value would be a second home for it
        "lr": 0.0,
        "betas": (optim.beta1, optim.beta2),
        "eps": optim.adam_eps,
    }
    described = [_described(group, optim) for group in groups]
    if optim.optimizer == "muon":
        matrices = [group.hidden_matrices for group in groups]
        return MuonWithAdamW(
            [group for group, hidden in zip(described, matrices) if hidden],
            [group for group, hidden in zip(described, matrices) if not hidden],
            muon={
                "lr": 0.0,
                "momentum": optim.muon_momentum,
                "nesterov": optim.muon_nesterov,
                "adjust_lr_fn": optim.muon_adjust_lr,
            },
            adamw={"fused": _may_fuse(hardware), **options},
        )
    if optim.optimizer == "adam8bit":
        from bitsandbytes.optim import AdamW8bit

        eight_bit: torch.optim.Optimizer = AdamW8bit(described, **options)
        return eight_bit
    return _adamw(described, options, hardware)


def set_rates(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """Writes the base rate times each group's factor, and the decay where a group decays."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
        if group["decays"]:
            group["weight_decay"] = weight_decay


def _described(group: ParameterGroup, optim: ResolvedOptim) -> dict[str, Any]:
    factor = group.lr_factor
    # One schedule for both: the base rate is AdamW's, and Muon's follows in proportion.
    if group.hidden_matrices:
        factor *= optim.muon_factor
    return {
        "params": group.parameters,
        "lr_factor": factor,
        "decays": group.weight_decay > 0,
        "weight_decay": group.weight_decay,
    }


def _adamw(
    groups: list[dict[str, Any]], options: dict[str, Any], hardware: ResolvedHardware
) -> torch.optim.Optimizer:
    """Returns DeepSpeed's AdamW where the optimizer is on the CPU, torch's otherwise.

    Their arithmetic is the same. DeepSpeed's for GPUs has to be compiled on the spot, and a build
    that was killed makes the next one wait for ever.
    """
    if "offload" in hardware.strategy:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        on_cpu: torch.optim.Optimizer = DeepSpeedCPUAdam(groups, adamw_mode=True, **options)
        return on_cpu
    return torch.optim.AdamW(groups, fused=_may_fuse(hardware), **options)


def _may_fuse(hardware: ResolvedHardware) -> bool:
    # Lightning's fp16 scaler cannot clip gradients of a fused optimizer.
    return hardware.precision != "fp16" or hardware.strategy.startswith("deepspeed")
