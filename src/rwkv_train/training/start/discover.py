"""Looks at disk and machine once, before the configuration is resolved."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from rwkv_train.checkpoint.weights import read_shapes
from rwkv_train.config.discovered import (
    Discovered,
    MachineDiscovered,
    StartDiscovered,
    StateDiscovered,
)
from rwkv_train.config.load import saved_values
from rwkv_train.config.schema import RunConfig
from rwkv_train.find_gpus import find_gpus
from rwkv_train.models.registry import config_from_shapes
from rwkv_train.training.start.data_files import OpenedData
from rwkv_train.training.start.discover_data import discover_data
from rwkv_train.training.start.resume_point import Fresh, FromState, ResumePoint


def discover(
    config: RunConfig, point: ResumePoint, keeps_batch: bool = False
) -> tuple[Discovered, OpenedData | None]:
    """Returns what `resolve` needs to know, and the data that was opened to know it.

    keeps_batch: as of `Discovered`. No data: None, which is possible at stage 1 only. Raises
    DataError or CheckpointError when files cannot be used.
    """
    data = config.data
    if data.data_file is None and data.data_type != "dummy":
        assert config.train.train_stage == 1, "check_fields refuses training without data"
        return Discovered(None, _start(point), _machine(), keeps_batch), None
    found, opened = discover_data(data)
    return Discovered(found, _start(point), _machine(), keeps_batch), opened


def _start(point: ResumePoint) -> StartDiscovered:
    """Returns what is known of the beginning of the run."""
    if isinstance(point, Fresh):
        donor = None if point.donor is None else config_from_shapes(read_shapes(point.donor))
        return StartDiscovered(donor_model=donor)
    return StartDiscovered(
        path=str(point.path),
        epoch=None if point.epoch < 0 else point.epoch,
        model=config_from_shapes(dict(point.shapes)),
        state=_state(point.state) if isinstance(point, FromState) else None,
    )


def _state(state: Mapping[str, Any]) -> StateDiscovered:
    """Returns what is known of the run that wrote a training state."""
    config = saved_values(state.get("config", "{}"))
    tokens, ctx_len = state.get("tokens_per_step"), config.get("ctx_len")
    samples = None
    if tokens and ctx_len:
        samples = tokens * state.get("windows", 1) // ctx_len
    return StateDiscovered(
        optimizer=state["optimizer"],
        warmup_steps=state.get("warmup_steps"),
        config=config,
        batch_samples=samples,
    )


def _machine() -> MachineDiscovered:
    """Returns what is known of this machine."""
    found = find_gpus()
    return MachineDiscovered(
        gpu_count=found.count,
        gpu_has_bf16=found.has_bf16,
        gpu_name=found.oldest,
        gpu_fault=found.fault,
        no_gpu=found.reason,
        # Looked up, not imported: its import prints, and fails without a GPU.
        has_bitsandbytes=importlib.util.find_spec("bitsandbytes") is not None,
    )
