"""Chooses whether a run's weights are fp32 under autocast, or 16-bit with fp32 masters."""

from __future__ import annotations

from rwkv_train.config.choices import Accelerator, OptimizerName, Precision, ResolvedStrategy
from rwkv_train.config.schema import RunConfig
from rwkv_train.errors import ConfigError


def resolve_autocast(
    config: RunConfig,
    accelerator: Accelerator,
    precision: Precision,
    strategy: ResolvedStrategy,
    optimizer: OptimizerName,
    lines: list[str],
) -> bool | None:
    """Returns whether products round fp32 weights; None where nothing is rounded.

    Raises ConfigError for what the strategy, the precision or the optimizer cannot serve.
    """
    given = config.hardware.autocast
    # Stage 1 only writes initial weights.
    if config.train.train_stage == 1:
        return given
    if precision in ("fp32", "tf32"):
        if given is not None:
            lines.append(f"autocast is not used: in {precision} no weight is rounded")
        return None
    if strategy.startswith("deepspeed"):
        if given:
            raise ConfigError(
                f"--autocast 1 with --strategy {strategy}: DeepSpeed keeps 16-bit weights and "
                "their fp32 masters; leave it out, or use --strategy ddp or single_device"
            )
        return False
    obstacle = _obstacle(precision, strategy, optimizer)
    if given is False and obstacle is not None:
        raise ConfigError(
            f"--autocast 0 with {obstacle}: bf16 weights with fp32 masters need --precision bf16, "
            "--optimizer adamw and --strategy single_device or DeepSpeed; leave it out"
        )
    if given is not None:
        return given
    if accelerator == "gpu" and obstacle is None:
        lines.append("autocast 0: bf16 weights with fp32 masters, the default on one GPU")
        return False
    return True


def _obstacle(
    precision: Precision, strategy: ResolvedStrategy, optimizer: OptimizerName
) -> str | None:
    """Returns the flag that stands in the way of masters, None if there is none."""
    if precision != "bf16":
        return f"--precision {precision}"
    if strategy != "single_device":
        return f"--strategy {strategy}"
    return None if optimizer == "adamw" else f"--optimizer {optimizer}"
