"""A folder with data and runs to damage, and a check that a refusal touches nothing in it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import train

SIZES = ["--n_layer", "2", "--n_embd", "32", "--head_size", "32"]
REST = [
    "--ctx_len",
    "32",
    "--micro_bsz",
    "4",
    "--exit_tokens",
    "1500",
    "--epoch_steps",
    "5",
    "--accelerator",
    "cpu",
    "--devices",
    "1",
    "--precision",
    "fp32",
    "--num_workers",
    "0",
    "--plot",
    "0",
    "--wkv_backend",
    "chunked",
]


@dataclass(frozen=True)
class Place:
    """A folder with data (text, text_val) and three project folders: paused, begun, empty."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data" / "text"

    @property
    def paused(self) -> Path:
        """One mini-epoch done: rwkv-init.pth, rwkv-0.pth, rwkv-0.state and logs."""
        return self.root / "paused"

    @property
    def begun(self) -> Path:
        """Only rwkv-init.pth."""
        return self.root / "begun"

    @property
    def empty(self) -> Path:
        return self.root / "empty"

    def command(self, *flags: object) -> list[str]:
        """Flags of a run that would work, the given ones replacing or joining them."""
        words = ["--data_file", str(self.data), *SIZES, *REST]
        given = [str(flag) for flag in flags]
        values = dict(zip(words[::2], words[1::2]))
        values.update(zip(given[::2], given[1::2]))
        return [word for pair in values.items() for word in pair if pair[1] != "-"]

    def snapshot(self) -> dict[str, tuple[int, str]]:
        """Every file's size and digest, every folder's name."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            content = path.read_bytes() if path.is_file() else b""
            found[str(path)] = (len(content), hashlib.sha256(content).hexdigest())
        return found


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Place:
    """Made once, copied for every test."""
    place = Place(tmp_path_factory.mktemp("refusals"))
    shutil.copytree(corpus.parent, place.root / "data")
    for folder in (place.paused, place.begun, place.empty):
        folder.mkdir()
    assert (
        train.main(place.command("--proj_dir", place.paused, "--max_steps", 5, "--rwkv_version", 6))
        == 0
    )
    shutil.copy(place.paused / "rwkv-init.pth", place.begun)
    return place


@pytest.fixture
def place(original: Place, tmp_path: Path) -> Place:
    """A copy to damage."""
    shutil.copytree(original.root, tmp_path / "place")
    return Place(tmp_path / "place")


@pytest.fixture
def refused(place: Place, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a program that must refuse; returns its line on stderr."""

    def run(argv: list[str], program: Callable[[list[str]], int] = train.main) -> str:
        before = place.snapshot()
        capfd.readouterr()
        try:
            status = program(argv)
        except SystemExit as leaving:
            status = leaving.code
        err = capfd.readouterr().err
        assert status == 2, err
        assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
        changed = set(before.items()) ^ set(place.snapshot().items())
        assert not changed, changed
        return err

    return run
