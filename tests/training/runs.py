"""What the tests of whole runs look at afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from rwkv_train.training.reporting.metrics_file import read_metrics

ROOT = Path(__file__).parents[2]


def start(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a module or a script of the project to its end, in a process group of its own."""
    program = [module] if module.endswith(".py") else ["-m", module]
    return subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=ROOT,
        text=True,
        capture_output=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def losses(folder: Path) -> dict[int, float]:
    """step -> loss in metrics.jsonl."""
    return {r["step"]: r["loss"] for r in read_metrics(folder) if "loss" in r}


def loss_steps(folder: Path) -> list[int]:
    """The steps in metrics.jsonl in file order, repetitions included."""
    return [r["step"] for r in read_metrics(folder) if "loss" in r]


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .pth file."""
    return torch.load(path, weights_only=True)


def assert_same_weights(one: Path, other: Path) -> None:
    """Fails unless both files hold bitwise equal tensors under equal names."""
    a, b = weights(one), weights(other)
    assert list(a) == list(b)
    different = [key for key in a if not torch.equal(a[key], b[key])]
    assert not different, f"{len(different)} of {len(a)} tensors differ, first {different[:3]}"
