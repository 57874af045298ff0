"""Runs with --compile 1: resumed exactly, refused where nothing can be compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rwkv_train.config.load import load_config
from rwkv_train.errors import ConfigError
from rwkv_train.models.compiled_blocks import compile_blocks
from rwkv_train.training import run
from rwkv_train.training.start.check_machine import check_packages
from tests.training.runs import assert_same_weights

Run = Callable[..., int]


def test_a_resumed_run_ends_with_the_bits_of_the_one_that_was_not_interrupted(
    run_training: Run,
    tmp_path: Path,
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    # Inductor would compile C++ for half a minute; what it compiles from is the same.
    monkeypatch.setattr(run, "compile_blocks", functools.partial(compile_blocks, backend="eager"))
    flags = {
        "compile": 1,
        "wkv_backend": "auto",
        "rwkv_version": 7,
        "max_steps": 4,
        "val_data_file": f"{corpus}_val",
        "val_every": 2,
        "val_samples": 2,
        "val_ctx_len": 48,
    }
    for folder, steps in (("whole", 4), ("parts", 3), ("parts", 4)):
        torch.compiler.reset()
        assert run_training(**flags | {"max_steps": steps, "proj_dir": tmp_path / folder}) == 0
    assert "compiled blocks" in capsys.readouterr().out
    assert_same_weights(*(tmp_path / folder / "rwkv-0.pth" for folder in ("whole", "parts")))


def test_a_machine_without_a_compiler_refuses_before_it_writes(monkeypatch: pytest.MonkeyPatch):
    config = load_config(["--compile", "1"])
    check_packages(config)
    monkeypatch.setattr("rwkv_train.compiler.shutil.which", lambda name: None)
    with pytest.raises(ConfigError, match="--compile 1: no C\\+\\+ compiler"):
        check_packages(config)
