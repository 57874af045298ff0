"""Training states that are small."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from rwkv_train.checkpoint.state_folder import complete_folder, list_parts
from rwkv_train.checkpoint.state_manifest import PartFile
from rwkv_train.checkpoint.state_parts import TensorRun, write_part
from rwkv_train.files import new_partial_folder, publish


def small_state(step: int, **more: object) -> dict:
    """A small training state; 10 tokens a step."""
    weights = {"a": torch.arange(6.0).reshape(2, 3) + step, "b": torch.tensor(0.1)}
    moments = {name: torch.ones_like(value) for name, value in weights.items()}
    return {
        "step": step,
        "tokens_per_step": 10,
        "weights": weights,
        "optimizer": "adam",
        "moments": {"exp_avg": moments, "exp_avg_sq": moments},
        "optimizer_steps": step,
        "rng": [{"cpu": torch.get_rng_state()}],
        "epoch_loss_sum": 0.1 + 0.2,
        "config": "train:\n  x: 1\n",
        "scaler": None,
        **more,
    }


def save_small_folder(path: Path, state: dict[str, Any], ranks: int = 2) -> str:
    """Writes a state as so many ranks do together, each its share of the elements; its digest."""
    partial = new_partial_folder(path)
    plain = {key: value for key, value in state.items() if key not in ("weights", "moments")}
    parts = [
        write_part(partial, rank, shares(state, rank, ranks), plain if rank == 0 else None)
        for rank in range(ranks)
    ]
    return publish_parts(path, partial, parts, plain)


def publish_parts(path: Path, partial: Path, parts: Sequence[PartFile], plain: dict) -> str:
    """Completes a folder of parts, and gives it its name; returns its digest."""
    list_parts(partial, len(parts), [])
    digest = complete_folder(partial, parts, plain)
    publish(partial, path)
    return digest


def shares(state: dict[str, Any], rank: int, ranks: int) -> Iterator[TensorRun]:
    """The elements of every tensor that are a rank's: as many for each of them."""
    groups = {("weights",): state["weights"]}
    groups |= {("moments", key): values for key, values in state["moments"].items()}
    for keys, tensors in groups.items():
        for name, value in tensors.items():
            first, last = (value.numel() * r // ranks for r in (rank, rank + 1))
            values = value.reshape(-1)[first:last].clone()
            if first < last:
                yield TensorRun((*keys, name), tuple(value.shape), first, values)
