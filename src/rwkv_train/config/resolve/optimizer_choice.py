"""Chooses the optimizer of a run; refuses one that this machine or strategy cannot serve."""

from __future__ import annotations

from rwkv_train.config.choices import Accelerator, OptimizerName, ResolvedStrategy
from rwkv_train.config.discovered import Discovered, MachineDiscovered, StartDiscovered
from rwkv_train.config.resolve.warmup_steps import resolve_warmup
from rwkv_train.config.resolved import ResolvedHardware, ResolvedModel, ResolvedOptim, not_narrowed
from rwkv_train.config.schema import OptimConfig, RunConfig
from rwkv_train.config.versions import VERSIONS
from rwkv_train.errors import ConfigError

# Base rate of Muon's matrices with its original scale, as its author uses it.
ORIGINAL_MUON_LR = 0.02
EPS_8BIT = 1e-8


def resolve_optimizer(
    config: RunConfig,
    discovered: Discovered,
    model: ResolvedModel,
    hardware: ResolvedHardware,
    total: int | None,
    lines: list[str],
) -> ResolvedOptim:
    """Returns the optim section with the optimizer's name, its eps, its warmup and Muon's rate.

    total: optimizer steps of the schedule, None without an end. Raises ConfigError when the machine
    or the strategy cannot serve the optimizer.
    """
    given, start = config.optim, discovered.start
    name = chosen_optimizer(given, start)
    if given.optimizer == "auto" and name != "adamw":
        lines.append(f"optimizer {name}: that of {start.path}")
    # Stage 1 trains nothing and often runs on a CPU.
    if name == "adam8bit" and config.train.train_stage != 1:
        _check_8bit(hardware.accelerator, hardware.strategy, discovered.machine)
    muon_lr = _muon_lr(given, hardware.strategy, lines) if name == "muon" else given.muon_lr
    adam_eps = _adam_eps(given, name, model.rwkv_version, lines)
    kept = not_narrowed(given, ResolvedOptim) | {"muon_lr": muon_lr}
    if given.special_lr_factor is not None and not given.layerwise_lr:
        lines.append(
            f"special_lr_factor {given.special_lr_factor} is not used: layerwise_lr is off"
        )
        kept["special_lr_factor"] = None
    restarts = start.state is not None and name != start.state.optimizer
    kept["warmup_steps"] = resolve_warmup(
        config,
        discovered,
        VERSIONS[model.rwkv_version].conventions,
        total,
        lines,
        restarts=restarts,
    )
    return ResolvedOptim(optimizer=name, adam_eps=adam_eps, **kept)


def chosen_optimizer(optim: OptimConfig, start: StartDiscovered) -> OptimizerName:
    """Returns the optimizer that is given, else that of the state, else adamw."""
    if optim.optimizer != "auto":
        return optim.optimizer
    return "adamw" if start.state is None else start.state.optimizer


def _muon_lr(given: OptimConfig, strategy: ResolvedStrategy, lines: list[str]) -> float:
    """Returns the base rate of Muon's matrices."""
    if strategy.endswith("_offload"):
        raise ConfigError(
            f"--optimizer muon with --strategy {strategy}: Muon multiplies matrices, for"
            " which an offloaded optimizer would use the CPU; use"
            f" {strategy.removesuffix('_offload')} or ddp"
        )
    if given.muon_lr is not None:
        return given.muon_lr
    # match_rms_adamw scales the updates so that AdamW's rates fit.
    if given.muon_adjust_lr != "original":
        return given.lr_init
    lines.append(f"muon_lr {ORIGINAL_MUON_LR:g}: the default with muon_adjust_lr original")
    return ORIGINAL_MUON_LR


def _adam_eps(
    given: OptimConfig, optimizer: OptimizerName, version: str, lines: list[str]
) -> float:
    """Returns what is added to the root of the second moment."""
    conventions = VERSIONS[version].conventions
    default = conventions.adam_eps
    if optimizer == "adam8bit":
        # A small second moment is 0 in 8 bits; only eps then keeps the update from exploding.
        default = max(default, EPS_8BIT)
    adam_eps = default if given.adam_eps is None else given.adam_eps
    lines.append(
        f"RWKV-{version} is trained as RWKV-LM's {conventions.generation} does: adam_eps"
        f" {adam_eps:g}{' (default)' if given.adam_eps is None else ''}, warmup from"
        f" {conventions.warmup_floor:g} of the rate"
    )
    return adam_eps


def _check_8bit(
    accelerator: Accelerator, strategy: ResolvedStrategy, machine: MachineDiscovered
) -> None:
    if accelerator != "gpu":
        raise ConfigError(
            "--optimizer adam8bit needs a GPU: its library has no kernels worth using on a CPU; use"
            " --optimizer adamw"
        )
    if not machine.has_bitsandbytes:
        raise ConfigError(
            "--optimizer adam8bit needs the library bitsandbytes, which is not installed: pip"
            " install bitsandbytes, or use --optimizer adamw"
        )
    if strategy.startswith("deepspeed"):
        raise ConfigError(
            f"--optimizer adam8bit with --strategy {strategy}: its moments share a scale per 256"
            " values, which ZeRO would cut; use --strategy ddp, or --optimizer adamw"
        )
