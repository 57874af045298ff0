"""No file that a run reads can make it run code: every kind of file, with code in it."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.training.damaged_runs import Place


class Mark:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self._path),)


def pickled(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps({"emb.weight": Mark(marker)}, protocol=2))


def zipped(path: Path, marker: Path) -> None:
    """As torch.save writes it since 1.6."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"step": Mark(marker)}, protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


def in_array(path: Path, marker: Path) -> None:
    np.save(path, np.array([Mark(marker)], dtype=object), allow_pickle=True)


def in_yaml(path: Path, marker: Path) -> None:
    path.write_text(f"train: !!python/object/apply:os.mkdir ['{marker}']\n")


FILES: dict[str, tuple[str, Callable[[Path, Path], None], Callable[[Place, Path], list[str]]]] = {
    "weights": ("evil.pth", pickled, lambda p, f: ["--proj_dir", p.empty, "--load_model", f]),
    "weights in a zip": (
        "evil.pth",
        zipped,
        lambda p, f: ["--proj_dir", p.empty, "--load_model", f],
    ),
    "safetensors": (
        "evil.safetensors",
        pickled,
        lambda p, f: ["--proj_dir", p.empty, "--load_model", f],
    ),
    "array of tokens": (
        "evil.npy",
        in_array,
        lambda p, f: ["--proj_dir", p.empty, "--data_type", "numpy", "--data_file", f],
    ),
    "pickle for an array": (
        "evil.npy",
        pickled,
        lambda p, f: ["--proj_dir", p.empty, "--data_type", "numpy", "--data_file", f],
    ),
    "configuration": ("evil.yaml", in_yaml, lambda p, f: ["--proj_dir", p.empty, "--config", f]),
}


@pytest.mark.parametrize("name", FILES)
def test_code_in_a_file_is_refused_and_not_run(
    place: Place, refused: Callable[..., str], tmp_path: Path, name: str
):
    file, write, flags = FILES[name]
    marker = tmp_path / "was run"
    write(tmp_path / file, marker)
    line = refused(place.command(*flags(place, tmp_path / file)))
    assert file in line
    assert not marker.exists()


@pytest.mark.parametrize("write", [pickled, zipped])
def test_code_in_a_training_state_is_passed_over_and_not_run(
    place: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str], write: Callable
):
    import train

    marker = tmp_path / "was run"
    write(place.paused / "rwkv-0.state", marker)
    write(place.paused / "rwkv-step-7.state", marker)
    assert train.main(place.command("--proj_dir", place.paused, "--max_steps", 6)) == 0
    printed = capfd.readouterr().out
    assert printed.count("passed over") >= 2 and "rwkv-step-7.state" in printed
    assert not marker.exists()


@pytest.mark.parametrize("write", [pickled, zipped, in_array, in_yaml])
def test_the_code_would_run_if_it_were_loaded_trustingly(tmp_path: Path, write: Callable):
    import torch
    import yaml

    marker, path = tmp_path / "was run", tmp_path / "evil.npy"
    write(path, marker)
    loaders = {
        pickled: lambda: pickle.loads(path.read_bytes()),
        zipped: lambda: torch.load(path, weights_only=False),
        in_array: lambda: np.load(path, allow_pickle=True),
        in_yaml: lambda: yaml.unsafe_load(path.read_text()),
    }
    loaders[write]()
    assert marker.exists()
