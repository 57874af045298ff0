"""Answers `train.py --plan 1`: the plan of a command line that is not run.

Without torch, which takes seconds to import, unless a checkpoint says what the model's sizes are.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rwkv_train.checkpoint.names import INIT, list_checkpoints
from rwkv_train.config.discovered import MachineDiscovered, StartDiscovered
from rwkv_train.config.schema import RunConfig, TrainConfig
from rwkv_train.planning.cards import find_card
from rwkv_train.planning.plan_program import print_run
from rwkv_train.training.launchers.launch import Launch
from rwkv_train.training.start.discover_data import discover_data

# A folder for every card that the kernel's module drives, also where there is no torch.
_CARDS = Path("/proc/driver/nvidia/gpus")


def gpu_models(folder: Path = _CARDS) -> list[str]:
    """Returns the names of the machine's NVIDIA cards as its driver gives them, [] without one."""
    names = []
    for file in sorted(folder.glob("*/information")):
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
        names += named[:1] or ["NVIDIA card"]
    return names


def print_plan(config: RunConfig, notices: list[str], launch: Launch) -> None:
    """Prints what a run of this command line would take; nothing is written.

    notices: lines about translated flags.  Raises TrainerError for what the run would refuse.
    """
    found = gpu_models()
    hardware = config.hardware
    if hardware.accelerator == "auto":
        hardware = dataclasses.replace(hardware, accelerator="gpu" if found else "cpu")
        notices = [*notices, _what_for(found)]
    hardware = dataclasses.replace(hardware, devices=launch.local_size, num_nodes=launch.num_nodes)
    config = dataclasses.replace(config, hardware=hardware)
    data = None
    if config.data.data_file is not None or config.data.data_type == "dummy":
        data, _ = discover_data(config.data)
    card = find_card(found[0]) if found else None
    machine = MachineDiscovered(
        # Asked for by name, cards may be those of another machine.
        gpu_count=launch.local_size,
        gpu_has_bf16=card is None or card.has_bf16,
        gpu_name=found[0] if found else None,
        has_bitsandbytes=True,
    )
    print_run(config, machine, _start(config.train), data, notices)


def _what_for(found: list[str]) -> str:
    if found:
        return f"accelerator gpu: {len(found)} x {found[0]}"
    return "accelerator cpu: no NVIDIA card here; --accelerator gpu plans for one elsewhere"


def _start(train: TrainConfig) -> StartDiscovered:
    """Returns the model that the run would start from, by the shapes in its file."""
    path = _model_file(train)
    if path is None:
        return StartDiscovered()
    # Both import torch.
    from rwkv_train.checkpoint.weights import read_shapes
    from rwkv_train.models.registry import config_from_shapes

    sizes = config_from_shapes(read_shapes(path))
    if train.train_stage == 1:
        return StartDiscovered(donor_model=sizes)
    return StartDiscovered(path=str(path), model=sizes)


def _model_file(train: TrainConfig) -> Path | None:
    if train.load_model is not None:
        return Path(train.load_model)
    if train.train_stage in (0, 1):
        return None
    # Of a run that tunes states the first file alone is a whole model.
    first = Path(train.proj_dir) / INIT
    if first.is_file():
        return first
    return next((path for _, path in list_checkpoints(train.proj_dir)), None)
