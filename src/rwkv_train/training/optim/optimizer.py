"""The optimizer over the model's parameter groups: AdamW, Muon with AdamW, or Adam in 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rwkv_train.config.resolved import ResolvedHardware, ResolvedOptim
from rwkv_train.models.parameters import ParameterGroup
from rwkv_train.ops.adamw import has_kernel
from rwkv_train.training.optim.fused_adamw import FusedAdamW
from rwkv_train.training.optim.muon import MuonWithAdamW


def build_optimizer(
    groups: list[ParameterGroup],
    optim: ResolvedOptim,
    hardware: ResolvedHardware,
    masters: Mapping[Tensor, Tensor] | None = None,
) -> torch.optim.Optimizer:
    """Returns the resolved optimizer; its groups carry `lr_factor` and the decay to be scheduled.

    masters: of 16-bit parameters, which AdamW alone takes.

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
    return _adamw(described, options, hardware, masters)


def set_rates(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """Writes the base rate times each group's factor, and the decay where a group decays."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
        if group["decays"]:
            group["weight_decay"] = weight_decay


def clip_gradients(optimizer: torch.optim.Optimizer, limit: float) -> Tensor:
    """Returns the L2 norm of all gradients, which the next step clips to `limit`; 0: to nothing."""
    if isinstance(optimizer, FusedAdamW):
        return optimizer.clip(limit)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    # with an infinite limit this only measures
    return torch.nn.utils.clip_grad_norm_(parameters, limit if limit > 0 else torch.inf)


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
    groups: list[dict[str, Any]],
    options: dict[str, Any],
    hardware: ResolvedHardware,
    masters: Mapping[Tensor, Tensor] | None,
) -> torch.optim.Optimizer:
    """Returns our own AdamW, DeepSpeed's where the optimizer is on the CPU, torch's where it must.

    Their arithmetic is the same. DeepSpeed's for GPUs has to be compiled on the spot, and a build
    that was killed makes the next one wait for ever. Under ZeRO the engine clips, and torch's is
    as fast then.
    """
    if "offload" in hardware.strategy:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        on_cpu: torch.optim.Optimizer = DeepSpeedCPUAdam(groups, adamw_mode=True, **options)
        return on_cpu
    own = not hardware.strategy.startswith("deepspeed")
    if own and (masters or has_kernel(groups[0]["params"][0].device)):
        return FusedAdamW(groups, masters=masters, **options)
    return torch.optim.AdamW(groups, fused=_may_fuse(hardware), **options)


def _may_fuse(hardware: ResolvedHardware) -> bool:
    # Lightning's fp16 scaler cannot clip gradients of a fused optimizer.
    return hardware.precision != "fp16" or hardware.strategy.startswith("deepspeed")
