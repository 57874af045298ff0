"""Runs of two processes, and what they leave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from rwkv_train.training.reporting.metrics_file import read_metrics
from tests.training.runs import start, start_cold

# 1000 tokens at 4 x 32 a step: 8 steps, mini-epochs after steps 4 and 8
STEPS = 8
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
# train.py starts the second process, as for a user.
LIGHTNING = []


@dataclass
class Ended:
    """What a run left: its exit status, all it printed, its folder."""

    status: int
    printed: str
    folder: Path

    def values(self, key: str) -> dict[int, float]:
        """step -> value of the records that have `key`."""
        return {r["step"]: r[key] for r in read_metrics(self.folder) if key in r}


@pytest.fixture(scope="module")
def command(corpus: Path) -> Callable[..., list[str]]:
    """Flags of one run with a global batch of 4 samples, changed by keyword."""

    def build(folder: Path, **changes: object) -> list[str]:
        values: dict[str, object] = {
            "proj_dir": folder,
            "data_file": corpus,
            "val_data_file": f"{corpus}_val",
            "val_samples": 5,
            "rwkv_version": 6,
            "n_layer": 2,
            "n_embd": 32,
            "head_size": 32,
            "ctx_len": 32,
            "exit_tokens": 1000,
            "epoch_steps": 4,
            "epoch_save": 1,
            "lr_init": "2e-3",
            "lr_final": "2e-4",
            "warmup_steps": 3,
            "weight_decay": 0.1,
            "grad_clip": 0.5,
            "accelerator": "cpu",
            "precision": "fp32",
            "num_workers": 0,
            "plot": 0,
            "wkv_backend": "chunked",
            **changes,
        }
        return [word for key, value in values.items() for word in (f"--{key}", str(value))]

    return build


@pytest.fixture(scope="module")
def two_processes(command: Callable[..., list[str]]) -> Callable[..., Ended]:
    """Runs train.py with two processes.

    launcher: None, both begin warm and are told their ranks; LIGHTNING or TORCHRUN, the whole start
    is a user's. self_started: the first begins warm, and starts the second itself.
    """

    def run(
        folder: Path,
        strategy: str,
        launcher: list[str] | None = None,
        self_started: bool = False,
        environment: dict[str, str] | None = None,
        **changes: object,
    ) -> Ended:
        flags = {"devices": 2, "micro_bsz": 2, "strategy": strategy, **changes}
        if launcher == TORCHRUN:
            # It says how many there are.
            del flags["devices"]
        words = ["train.py", *command(folder, **flags)]
        if launcher is not None:
            done = start_cold(*launcher, *words)
        else:
            done = start(*words, ranks=1 if self_started else 2, environment=environment)
        return Ended(done.returncode, done.stdout + done.stderr, folder)

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of this file are."""
    return tmp_path_factory.mktemp("processes")
