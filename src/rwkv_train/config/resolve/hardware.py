"""Accelerator, processes, precision and strategy of a run."""

from __future__ import annotations

from rwkv_train.config.check.shared_samples import check_groups
from rwkv_train.config.choices import Accelerator, Precision, ResolvedStrategy
from rwkv_train.config.discovered import Discovered, MachineDiscovered
from rwkv_train.config.machine_schema import HardwareConfig
from rwkv_train.config.resolve.autocast_choice import resolve_autocast
from rwkv_train.config.resolve.optimizer_choice import chosen_optimizer
from rwkv_train.config.resolved import ResolvedHardware, not_narrowed
from rwkv_train.config.schema import RunConfig
from rwkv_train.errors import ConfigError

_WITHOUT_OFFLOAD: dict[ResolvedStrategy, ResolvedStrategy] = {
    "deepspeed_stage_2_offload": "deepspeed_stage_2",
    "deepspeed_stage_3_offload": "deepspeed_stage_3",
}


def resolve_hardware(
    config: RunConfig, discovered: Discovered, lines: list[str]
) -> ResolvedHardware:
    """Returns the hardware section with nothing automatic left.

    Raises ConfigError for devices, a precision or a strategy that this machine does not have.
    """
    given, machine = config.hardware, discovered.machine
    # Stage 1 only writes initial weights in the precision of the later run, often on a CPU.
    prepares = config.train.train_stage == 1
    accelerator = _accelerator(given, machine, lines)
    devices = _devices(given, accelerator, machine, lines)
    precision = _precision(given, accelerator, prepares, machine, lines)
    nodes = given.num_nodes or 1
    if not prepares:
        check_groups(devices * nodes, given.context_parallel)
    # Before the other settings of the optimizer, which depend on the strategy chosen by it.
    optimizer = chosen_optimizer(config.optim, discovered.start)
    strategy = _strategy(given, accelerator, devices * nodes, prepares, optimizer, lines)
    autocast = resolve_autocast(config, accelerator, precision, strategy, optimizer, lines)
    return ResolvedHardware(
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        precision=precision,
        strategy=strategy,
        **not_narrowed(given, ResolvedHardware) | {"autocast": autocast},
    )


def _accelerator(
    given: HardwareConfig, machine: MachineDiscovered, lines: list[str]
) -> Accelerator:
    if given.accelerator != "cpu" and machine.gpu_fault:
        raise ConfigError(
            f"--accelerator {given.accelerator}: {machine.gpu_fault}; to train on the CPU give "
            "--accelerator cpu"
        )
    if given.accelerator == "gpu" and machine.gpu_count == 0:
        raise ConfigError(
            f"--accelerator gpu: torch finds no CUDA device here{_because(machine)}; use "
            "--accelerator cpu"
        )
    if given.accelerator != "auto":
        return given.accelerator
    accelerator: Accelerator = "gpu" if machine.gpu_count else "cpu"
    found = (
        f"{machine.gpu_count} found"
        if machine.gpu_count
        else f"no CUDA device found{_because(machine)}"
    )
    lines.append(f"accelerator {accelerator}: {found}")
    return accelerator


def _because(machine: MachineDiscovered) -> str:
    return f" ({machine.no_gpu})" if machine.no_gpu else ""


def _devices(
    given: HardwareConfig, accelerator: Accelerator, machine: MachineDiscovered, lines: list[str]
) -> int:
    if given.devices is None:
        devices = machine.gpu_count if accelerator == "gpu" else 1
        if devices > 1:
            lines.append(f"devices {devices}: all GPUs")
        return devices
    if accelerator == "gpu" and given.devices > machine.gpu_count:
        raise ConfigError(
            f"--devices {given.devices}: this machine has {machine.gpu_count} GPU(s); use"
            f" --devices {machine.gpu_count}"
        )
    return given.devices


def _precision(
    given: HardwareConfig,
    accelerator: Accelerator,
    prepares: bool,
    machine: MachineDiscovered,
    lines: list[str],
) -> Precision:
    on_gpu = accelerator == "gpu"
    if given.precision is None:
        if on_gpu and not machine.gpu_has_bf16:
            lines.append(f"precision fp16: {_gpu(machine)} does not compute in bf16")
            return "fp16"
        precision: Precision = "bf16" if on_gpu else "fp32"
        if on_gpu:
            lines.append(f"precision {precision}: the default on a GPU")
        return precision
    if prepares:
        return given.precision
    if given.precision == "bf16" and on_gpu and not machine.gpu_has_bf16:
        raise ConfigError(
            f"--precision bf16: {_gpu(machine)} does not compute in bf16; use --precision fp16 or "
            "fp32"
        )
    if given.precision == "fp16" and not on_gpu:
        raise ConfigError("--precision fp16 needs a GPU; on a CPU use --precision bf16 or fp32")
    if given.precision == "tf32" and not on_gpu:
        lines.append("precision fp32: TF32 is a mode of GPUs, on a CPU it is fp32")
        return "fp32"
    return given.precision


def _gpu(machine: MachineDiscovered) -> str:
    return machine.gpu_name or "this GPU"


def _strategy(
    given: HardwareConfig,
    accelerator: Accelerator,
    processes: int,
    prepares: bool,
    optimizer: str,
    lines: list[str],
) -> ResolvedStrategy:
    if given.strategy != "auto":
        strategy = given.strategy
    else:
        # 8-bit moments cannot be cut by ZeRO
        zero = accelerator == "gpu" and optimizer != "adam8bit"
        several: ResolvedStrategy = "deepspeed_stage_2" if zero else "ddp"
        strategy = "single_device" if processes == 1 else several
        if processes > 1:
            lines.append(f"strategy {strategy}: the default for {processes} processes")
    # Stage 1 keeps the name: no engine starts, and the later run may be on GPUs.
    if strategy in _WITHOUT_OFFLOAD and accelerator == "cpu" and not prepares:
        strategy = _WITHOUT_OFFLOAD[strategy]
        lines.append(f"strategy {strategy}: on a CPU there is nothing to offload")
    return strategy
