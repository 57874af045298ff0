"""A small corpus and command lines that the training tests share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from make_data import main as make_data
from rwkv_train.data.binidx.reader import Binidx
from tests.training.damaged_runs import original, place, refused
from tests.training.two_processes import command, folder, two_processes

__all__ = ["command", "folder", "original", "place", "refused", "two_processes"]

WORDS = ["the", "state", "of", "a", "network", "that", "reads", "one", "token", "after", "another"]


@pytest.fixture(autouse=True)
def _fp32_products_as_before() -> Iterator[None]:
    """Undoes what a run in this process has chosen for all products, before the next test."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefix of a byte-level binidx pair of about 20 thousand tokens, next to its _val pair."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = []
    for i in range(200):
        words = [WORDS[(i * k + k * k) % len(WORDS)] for k in range(1, 20)]
        lines.append(json.dumps({"text": " ".join(words)}))
    source = folder / "text.jsonl"
    source.write_text("\n".join(lines), encoding="utf-8")
    prefix = folder / "text"
    status = make_data(
        [
            str(source),
            "1",
            "32",
            "--output",
            str(prefix),
            "--tokenizer",
            "bytes",
            "--seed",
            "3",
            "--validation",
            "0.1",
        ]
    )
    assert not status
    return prefix


@pytest.fixture
def flags(corpus: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Builds a command line for train.py: small defaults, changed or removed (None) by keyword."""

    def build(**changes: object) -> list[str]:
        values: dict[str, object] = {
            "proj_dir": tmp_path / "out",
            "data_file": corpus,
            "rwkv_version": 6,
            "n_layer": 2,
            "n_embd": 32,
            "head_size": 32,
            "ctx_len": 32,
            "micro_bsz": 4,
            "exit_tokens": 1500,
            "epoch_steps": 5,
            "epoch_save": 1,
            "lr_init": "1e-3",
            "lr_final": "1e-4",
            "warmup_steps": 3,
            "accelerator": "cpu",
            "devices": 1,
            "precision": "fp32",
            "num_workers": 0,
            "plot": 0,
            "report": 0,
            "wkv_backend": "chunked",
        }
        values.update(changes)
        return [
            word
            for key, value in values.items()
            if value is not None
            for word in (f"--{key}", str(value))
        ]

    return build


@pytest.fixture
def run_training(flags: Callable[..., list[str]]) -> Callable[..., int]:
    """Runs train.py in this process with `flags`; returns its exit status."""
    return lambda **changes: train.main(flags(**changes))


@pytest.fixture(scope="session")
def masked(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus with weights 0, 1 and 2 in runs of some tokens, here many, there none."""
    folder = tmp_path_factory.mktemp("masked")
    generator = np.random.default_rng(7)
    for name in ("text", "text_val"):
        for ending in ("bin", "idx", "manifest.json"):
            shutil.copy(f"{corpus.parent / name}.{ending}", folder)
        tokens = Binidx(folder / name).tokens
        runs = generator.choice([0, 0, 1, 2], size=tokens // 7 + 1)
        weights = np.repeat(runs, 7)[:tokens].astype(np.uint8)
        (folder / f"{name}.mask").write_bytes(weights.tobytes())
    return folder / "text"
