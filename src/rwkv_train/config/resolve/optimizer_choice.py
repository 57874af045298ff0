"""Which optimizer a run has, and whether this machine and strategy can serve it."""

from __future__ import annotations

import dataclasses

from rwkv_train.config.discovered import Discovered
from rwkv_train.config.schema import OptimConfig, RunConfig, Strategy
from rwkv_train.errors import ConfigError

# Base rate of Muon's matrices with its original scale, as its author uses it.
ORIGINAL_MUON_LR = 0.02


def resolve_optimizer(config: RunConfig, discovered: Discovered, lines: list[str]) -> OptimConfig:
    """The optim section with the optimizer's name and Muon's rate.

    Raises ConfigError when the machine or the strategy cannot serve it. Needs the hardware
    section resolved.
    """
    optim, hardware = config.optim, config.hardware
    name = chosen_optimizer(config, discovered)
    if optim.optimizer == "auto" and discovered.state_optimizer not in (None, "adamw"):
        lines.append(f"optimizer {name}: that of {discovered.start_path}")
    if name == "adam8bit" and config.train.train_stage != 1:
        _check_8bit(hardware.accelerator, hardware.strategy, discovered)
    if name != "muon":
        return dataclasses.replace(optim, optimizer=name)
    if hardware.strategy.endswith("_offload"):
        raise ConfigError(
            f"--optimizer muon with --strategy {hardware.strategy}: Muon multiplies matrices, for"
            " which an offloaded optimizer would use the CPU; use"
            f" {hardware.strategy.removesuffix('_offload')} or ddp"
        )
    rate = optim.muon_lr
    if rate is None and optim.muon_adjust_lr == "original":
        rate = ORIGINAL_MUON_LR
        lines.append(f"muon_lr {rate:g}: the default with muon_adjust_lr original")
    rate = optim.lr_init if rate is None else rate
    return dataclasses.replace(optim, optimizer=name, muon_lr=rate)


def chosen_optimizer(config: RunConfig, discovered: Discovered) -> str:
    """adamw, muon or adam8bit."""
    if config.optim.optimizer != "auto":
        return config.optim.optimizer
    return discovered.state_optimizer or "adamw"


def restarts_optimizer(config: RunConfig, discovered: Discovered) -> bool:
    """Whether a run goes on from a state whose moments belong to another optimizer."""
    return (
        discovered.start == "state"
        and discovered.state_optimizer is not None
        and chosen_optimizer(config, discovered) != discovered.state_optimizer
    )


def _check_8bit(accelerator: str, strategy: Strategy, discovered: Discovered) -> None:
    if accelerator != "gpu":
        raise ConfigError(
            "--optimizer adam8bit needs a GPU: its library has no kernels worth using on a CPU; use"
            " --optimizer adamw"
        )
    if not discovered.has_bitsandbytes:
        raise ConfigError(
            "--optimizer adam8bit needs the library bitsandbytes, which is not installed: pip"
            " install bitsandbytes, or use --optimizer adamw"
        )
    if strategy.startswith("deepspeed"):
        raise ConfigError(
            f"--optimizer adam8bit with --strategy {strategy}: its moments share a scale per 256"
            " values, which ZeRO would cut; use --strategy ddp, or --optimizer adamw"
        )
