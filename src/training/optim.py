"""The optimizer: Adam over the model's parameter groups."""

from __future__ import annotations

import torch

from src.config.schema import HardwareConfig, OptimConfig
from src.models.parameters import ParameterGroup


def build_optimizer(
    groups: list[ParameterGroup], optim: OptimConfig, hardware: HardwareConfig
) -> torch.optim.Optimizer:
    """AdamW whose groups carry `lr_factor` and the decay the schedule writes into them.

    The rates are set before every step (`set_rates`). AdamW with decay 0 is plain Adam, which is
    what RWKV-LM uses then. DeepSpeed's offload needs its own Adam on the CPU.
    """
    parameter_groups = [
        {
            "params": group.parameters,
            "lr_factor": group.lr_factor,
            "decays": group.weight_decay > 0,
            "weight_decay": group.weight_decay,
        }
        for group in groups
    ]
    options = {
        # replaced before the first step; a real value would be a second home for it
        "lr": 0.0,
        "betas": (optim.beta1, optim.beta2),
        "eps": optim.adam_eps,
    }
    if "offload" in hardware.strategy:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(parameter_groups, adamw_mode=True, **options)
    # Lightning's fp16 scaler cannot clip gradients of a fused optimizer.
    scaled = hardware.precision == "fp16" and not hardware.strategy.startswith("deepspeed")
    return torch.optim.AdamW(parameter_groups, fused=not scaled, **options)


def set_rates(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """Writes the base rate times each group's factor, and the decay where a group decays."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
        if group["decays"]:
            group["weight_decay"] = weight_decay
