"""A paused run whose copies tests resume with something changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import train
from make_data import main as make_data


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pairs a (long), b (a and more behind it) and c (other text)."""
    folder = tmp_path_factory.mktemp("texts")
    lines = [json.dumps({"text": f"{i * i} and {i} are {i + i * i}"}) for i in range(120)]
    others = [json.dumps({"text": f"nothing of {i} is the same"}) for i in range(120)]
    for name, content in {"a": lines[:60], "b": lines, "c": others}.items():
        (folder / f"{name}.jsonl").write_text("\n".join(content))
        words = [str(folder / f"{name}.jsonl"), "1", "32", "--output", str(folder / name)]
        # As they come: a is then the beginning of b.
        assert not make_data([*words, "--tokenizer", "bytes", "--no_shuffle"])
    return folder


@pytest.fixture(scope="session")
def paused(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps on a, paused; the tests resume copies of it."""
    folder = tmp_path_factory.mktemp("paused") / "out"
    assert train.main(line(folder, data_file=texts / "a")) == 0
    return folder


def line(folder: Path, **changes: object) -> list[str]:
    values: dict[str, object] = {
        "proj_dir": folder,
        "rwkv_version": 6,
        "n_layer": 1,
        "n_embd": 32,
        "head_size": 32,
        "ctx_len": 32,
        "micro_bsz": 4,
        "exit_tokens": 12 * 128,
        "epoch_steps": 4,
        "max_steps": 4,
        "lr_init": "1e-3",
        "lr_final": "1e-4",
        "accelerator": "cpu",
        "num_workers": 0,
        "plot": 0,
        "wkv_backend": "chunked",
        "enable_progress_bar": 0,
        **changes,
    }
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


Resume = Callable[..., tuple[int, str]]


@pytest.fixture
def resume(paused: Path, texts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Resume:
    """Resumes a copy of the paused run for a step more; returns status and what it printed."""

    def resumed(data: str = "a", **changes: object) -> tuple[int, str]:
        folder = tmp_path / "out"
        if not folder.exists():
            shutil.copytree(paused, folder)
        before = {path: path.read_bytes() for path in folder.iterdir()}
        capfd.readouterr()
        options = {"max_steps": 5, "data_file": texts / data, **changes}
        status = train.main(line(folder, **options))
        told = "".join(capfd.readouterr())
        if status == 2:
            assert told.startswith("error: ") and told.count("\n") == 1, told
            assert {path: path.read_bytes() for path in folder.iterdir()} == before
        return status, told

    return resumed
