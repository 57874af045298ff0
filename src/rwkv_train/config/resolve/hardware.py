"""Accelerator, processes, precision and strategy of a run."""

from __future__ import annotations

import dataclasses

from rwkv_train.config.discovered import Discovered
from rwkv_train.config.resolve.optimizer_choice import chosen_optimizer
from rwkv_train.config.schema import HardwareConfig, Precision, RunConfig, Strategy
from rwkv_train.errors import ConfigError


def resolve_hardware(config: RunConfig, discovered: Discovered, lines: list[str]) -> HardwareConfig:
    """The hardware section with nothing automatic left in accelerator, devices and strategy.

    Raises ConfigError for devices, a precision or a strategy that this machine does not have.
    """
    given = config.hardware
    accelerator = _accelerator(given, discovered, lines)
    devices = _devices(given, accelerator, discovered, lines)
    # Stage 1 only writes initial weights in the precision of the later run, often on a CPU.
    prepares = config.train.train_stage == 1
    return dataclasses.replace(
        given,
        accelerator=accelerator,
        devices=devices,
        precision=_precision(given, accelerator, prepares, discovered, lines),
        strategy=_strategy(
            given,
            accelerator,
            devices * given.num_nodes,
            prepares,
            chosen_optimizer(config, discovered),
            lines,
        ),
    )


def _accelerator(given: HardwareConfig, discovered: Discovered, lines: list[str]) -> str:
    if given.accelerator == "gpu" and discovered.gpu_count == 0:
        raise ConfigError(
            "--accelerator gpu: torch finds no CUDA device here; use --accelerator cpu, or install"
            " a CUDA build of torch"
        )
    if given.accelerator != "auto":
        return given.accelerator
    accelerator = "gpu" if discovered.gpu_count else "cpu"
    found = f"{discovered.gpu_count} found" if discovered.gpu_count else "no CUDA device found"
    lines.append(f"accelerator {accelerator}: {found}")
    return accelerator


def _devices(
    given: HardwareConfig, accelerator: str, discovered: Discovered, lines: list[str]
) -> int:
    if given.devices is None:
        devices = discovered.gpu_count if accelerator == "gpu" else 1
        lines.append(f"devices {devices}: {'all GPUs' if accelerator == 'gpu' else 'one process'}")
        return devices
    if accelerator == "gpu" and given.devices > discovered.gpu_count:
        raise ConfigError(
            f"--devices {given.devices}: this machine has {discovered.gpu_count} GPU(s); use"
            f" --devices {discovered.gpu_count}"
        )
    return given.devices


def _precision(
    given: HardwareConfig,
    accelerator: str,
    prepares: bool,
    discovered: Discovered,
    lines: list[str],
) -> Precision:
    on_gpu = accelerator == "gpu"
    if given.precision is None:
        precision = "bf16" if on_gpu and discovered.gpu_has_bf16 else "fp32"
        lines.append(f"precision {precision}: the default on this {accelerator}")
        return precision
    if prepares:
        return given.precision
    if given.precision == "bf16" and on_gpu and not discovered.gpu_has_bf16:
        raise ConfigError(
            "--precision bf16: this GPU does not compute in bf16; use --precision fp16 or fp32"
        )
    if given.precision == "fp16" and not on_gpu:
        raise ConfigError("--precision fp16 needs a GPU; on a CPU use --precision bf16 or fp32")
    if given.precision == "tf32" and not on_gpu:
        lines.append("precision fp32: TF32 is a mode of GPUs, on a CPU it is fp32")
        return "fp32"
    return given.precision


def _strategy(
    given: HardwareConfig,
    accelerator: str,
    processes: int,
    prepares: bool,
    optimizer: str,
    lines: list[str],
) -> Strategy:
    strategy = given.strategy
    if strategy == "auto":
        if processes == 1:
            strategy = "single_device"
        else:
            # 8-bit moments cannot be cut by ZeRO
            zero = accelerator == "gpu" and optimizer != "adam8bit"
            strategy = "deepspeed_stage_2" if zero else "ddp"
        lines.append(f"strategy {strategy}: the default for {processes} {accelerator} process(es)")
    if strategy == "single_device" and processes > 1:
        raise ConfigError(
            f"--strategy single_device runs one process, not {processes}; use --strategy auto"
        )
    if strategy.endswith("_offload") and accelerator == "cpu" and not prepares:
        strategy = strategy.removesuffix("_offload")
        lines.append(f"strategy {strategy}: on a CPU there is nothing to offload")
    return strategy
