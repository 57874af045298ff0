"""Refuses, before anything is allocated, a model that the memory of the machine cannot hold."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

import torch

from rwkv_train.checkpoint.number_formats import DTYPES
from rwkv_train.config.resolved import ResolvedConfig, ResolvedModel
from rwkv_train.config.run_length import window_len
from rwkv_train.errors import ConfigError
from rwkv_train.models.registry import build_model

_FP32 = 4
# From the third block on all are alike.
_UNLIKE_BLOCKS = 3
# strategy -> what is divided among the processes: moments, gradients, weights
_DIVIDED = {
    "deepspeed_stage_1": 1,
    "deepspeed_stage_2": 2,
    "deepspeed_stage_2_offload": 2,
    "deepspeed_stage_3": 3,
    "deepspeed_stage_3_offload": 3,
}


class RunMemory(NamedTuple):
    """Bytes that all processes of a machine hold together for as long as a run lasts.

    moments: with the fp32 copy of 16-bit weights where there is one.
    """

    weights: int
    gradients: int
    moments: int

    @property
    def total(self) -> int:
        return sum(self)


def check_memory(config: ResolvedConfig) -> None:
    """Raises ConfigError when weights, gradients and moments alone are more than there is.

    Activations, data and everything else come on top: who passes may still run out of memory.
    """
    count = parameter_count(config.model)
    needed, limit = run_memory(config, count), _limit(config)
    if limit is None:
        return
    devices = config.hardware.devices
    on_cpu = config.hardware.accelerator == "cpu"
    has = f"{'this machine has' if on_cpu else f'{devices} GPUs have'} {_gb(limit)}"
    if needed.total > limit:
        places = "1 process" if devices == 1 else f"{devices} processes"
        raise ConfigError(
            f"{_sizes(config.model)}: {count / 1e9:,.2f} billion parameters need "
            f"{_gb(needed.total)} ({_gb(needed.weights)} of weights, {_gb(needed.gradients)} of "
            f"gradients, {_gb(needed.moments)} of moments) in {places}, and {has}; take "
            f"{_remedies(config, needed.weights <= limit)}"
        )
    batch = batch_memory(config)
    if config.train.train_stage != 1 and needed.total + batch > limit:
        raise ConfigError(
            f"--micro_bsz {config.train.micro_bsz} --ctx_len {config.data.ctx_len}: one batch "
            f"needs {_gb(batch)} at the least besides {_gb(needed.total)} of the model, and {has}; "
            "take a smaller batch, with --accumulate_grad_batches for as many samples a step"
        )


def _sizes(model: ResolvedModel) -> str:
    names = ("n_layer", "n_embd", "dim_ffn", "vocab_size")
    return " ".join(f"--{name} {getattr(model, name)}" for name in names)


def _remedies(config: ResolvedConfig, weights_fit: bool) -> str:
    """Returns what would need less memory than this run, of which the weights alone may fit."""
    found = ["a smaller model"]
    if config.train.train_stage != 1:
        if weights_fit and config.train.train_type == "all":
            found.append("--train_type lora")
        stage = "deepspeed_stage_3"
        flag = "" if config.hardware.strategy.startswith(stage) else f" with --strategy {stage}"
        found.append(f"more GPUs or machines{flag}")
    return ", ".join(found[:-1]) + " or " * (len(found) > 1) + found[-1]


def parameter_count(model: ResolvedModel) -> int:
    """Returns the number of a model's parameters without allocating them.

    Raises ConfigError for tensors that are too large to be counted.
    """
    if model.n_layer <= _UNLIKE_BLOCKS:
        return _counted(model, model.n_layer)
    last = _counted(model, _UNLIKE_BLOCKS)
    block = last - _counted(model, _UNLIKE_BLOCKS - 1)
    return last + (model.n_layer - _UNLIKE_BLOCKS) * block


def run_memory(config: ResolvedConfig, count: int) -> RunMemory:
    """Returns what a run with so many parameters holds at the least, on a machine of its own."""
    hardware, train = config.hardware, config.train
    if train.train_stage == 1:
        # Initial values are only written.
        return RunMemory(_FP32 * count, 0, 0)
    divided = _DIVIDED.get(hardware.strategy, 0)
    masters = hardware.autocast is False
    width = DTYPES[hardware.precision].itemsize if masters else _FP32
    # Of adapters and states so little learns that it does not matter here.
    learnt = count if train.train_type == "all" else 0
    # What adds up micro batches; on a CPU in fp32, see `ZeroStrategy.sum_in_fp32`. Ours has a sum
    # of its own only where there are several.
    several = train.accumulate_grad_batches > 1
    sums_in_fp32 = several if hardware.keeps_masters else hardware.accelerator == "cpu"
    sums = _FP32 if sums_in_fp32 else width
    moments = 2 if config.optim.optimizer == "adam8bit" else 2 * _FP32
    if config.optim.optimizer == "muon":
        # One momentum for a matrix, which nearly all are.
        moments = _FP32
    if masters:
        moments += _FP32
    # Each process holds all of what is not divided among the processes of all machines.
    copies = hardware.devices
    parts = [1 / hardware.num_nodes if divided >= level else copies for level in (3, 2, 1)]
    bytes_each = (width * count, sums * learnt, moments * learnt)
    return RunMemory(*(int(size * part) for size, part in zip(bytes_each, parts)))


def batch_memory(config: ResolvedConfig) -> int:
    """Returns the bytes of a batch's tokens and targets and of one layer's output, everywhere."""
    samples = config.hardware.devices * config.train.micro_bsz
    width = DTYPES[config.hardware.precision].itemsize * config.model.n_embd
    ids = 2 * torch.int64.itemsize * config.data.ctx_len
    return samples * (ids + window_len(config) * width)


def _counted(model: ResolvedModel, n_layer: int) -> int:
    try:
        with torch.device("meta"):
            network = build_model(dataclasses.replace(model, n_layer=n_layer))
    # What does not fit 64 bits is one or the other, by where it is noticed.
    except (RuntimeError, TypeError, OverflowError) as error:
        raise ConfigError(
            f"{_sizes(model)}: no memory holds tensors of that size; take a smaller model"
        ) from error
    return sum(parameter.numel() for parameter in network.parameters())


def _limit(config: ResolvedConfig) -> int | None:
    """Returns the bytes of memory that the processes may use together; None: not known."""
    hardware = config.hardware
    if hardware.accelerator == "cpu":
        return memory_limit()
    if "offload" in hardware.strategy or hardware.devices > torch.cuda.device_count():
        return None
    sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(hardware.devices)]
    return sum(sizes) or None


def memory_limit(root: Path = Path("/")) -> int | None:
    """Returns the memory of the machine with its swap, or what a control group leaves of it.

    None where the system does not tell.  root: of the file system that tells it.
    """
    limits = [*_control_groups(root), *_physical(root)]
    return min(limits, default=None)


def _physical(root: Path) -> list[int]:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        kilobytes = {
            name: int(rest.split()[0]) for name, _, rest in (s.partition(":") for s in lines)
        }
        return [1024 * (kilobytes["MemTotal"] + kilobytes.get("SwapTotal", 0))]
    except (OSError, ValueError, KeyError, IndexError):
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            return [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
        return []


def _control_groups(root: Path) -> list[int]:
    """Returns the limits of the groups this process is in, from version 1 and 2 of the interface.

    Swap that a group may use besides is left out: containers seldom have any.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        first = controllers == ""
        if not first and "memory" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("" if first else "memory")
        file = "memory.max" if first else "memory.limit_in_bytes"
        # Inside a container its own group is the root, whatever the name says.
        group = base / name.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(base) and (limit := _number(folder / file)) is not None:
                found.append(limit)
    return found


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    # Without a limit the file holds the word max.
    except (OSError, ValueError):
        return None


def _gb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
