"""best.pth: known by what it was validated on, wherever the data lie."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rwkv_train.checkpoint.provenance import read_about
from rwkv_train.checkpoint.resume import load_state, save_state
from rwkv_train.training.progress import Progress

Run = Callable[..., int]
BEST = {"val_every": 5, "save_best": 1, "val_samples": 4}


def believe(out: Path, loss: float) -> None:
    """Makes state and file say that the best so far had this loss."""
    (path,) = out.glob("*.state")
    save_state(path, {**load_state(path), "best_val_loss": loss})


@pytest.mark.parametrize("spelling", ["relative", "dotted", "link"])
def test_another_spelling_of_the_path_keeps_the_best(
    run_training: Run, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
):
    out, data = tmp_path / "out", corpus.with_name("text_val")
    assert run_training(max_steps=5, val_data_file=data, **BEST) == 0
    before = (out / "best.pth").read_bytes()
    believe(out, 0.1)
    monkeypatch.chdir(corpus.parent)
    for suffix in (".bin", ".idx"):
        (tmp_path / f"link{suffix}").symlink_to(f"{data}{suffix}")
    name = {"relative": data.name, "dotted": f"./{data.name}", "link": tmp_path / "link"}[spelling]
    assert run_training(max_steps=10, val_data_file=name, **BEST) == 0
    assert (out / "best.pth").read_bytes() == before


def test_a_best_that_was_removed_is_written_again(run_training: Run, tmp_path: Path, corpus: Path):
    out, data = tmp_path / "out", corpus.with_name("text_val")
    assert run_training(max_steps=5, val_data_file=data, **BEST) == 0
    believe(out, 0.1)
    (out / "best.pth").unlink()
    assert run_training(max_steps=10, val_data_file=data, **BEST) == 0
    assert read_about(out / "best.pth")["val_loss"] > 0.1


def test_a_file_of_somebody_else_in_the_place_of_ours_is_kept(
    run_training: Run, tmp_path: Path, corpus: Path, capfd: pytest.CaptureFixture[str]
):
    out, data = tmp_path / "out", corpus.with_name("text_val")
    options = {"val_data_file": data, "epoch_steps": 5, **BEST}
    assert run_training(max_steps=5, **options) == 0
    for name in ("best.pth", "rwkv-1.pth"):
        shutil.copy(out / "rwkv-init.pth", out / name)
    assert run_training(max_steps=10, **options) == 0
    told = capfd.readouterr().err
    for name in ("best.pth", "rwkv-1.pth"):
        assert f"{out / name} was not written by this run" in told and f"kept-1-{name}" in told
        assert (out / f"kept-1-{name}").read_bytes() == (out / "rwkv-init.pth").read_bytes()
        assert read_about(out / name)
    # What the run wrote itself is written over without a copy.
    assert run_training(max_steps=12, **options) == run_training(max_steps=15, **options) == 0
    assert len([*out.glob("kept-*")]) == 2


def test_the_lower_of_state_and_file_is_the_one_to_beat():
    progress = Progress(best_val_loss=2.0, best_val_data="a")
    progress.compare_with_best({"val_loss": 1.5, "val_data": "a"}, "a")
    assert not progress.improves(1.6, "a") and progress.best_val_loss == 1.5
    progress.compare_with_best({"val_loss": 3.0, "val_data": "a"}, "a")
    assert progress.best_val_loss == 1.5
    # of an earlier version, which the state alone knows
    progress.compare_with_best({}, "a")
    assert progress.best_val_loss == 1.5
    # a run killed before its first state
    fresh = Progress()
    fresh.compare_with_best({"val_loss": 1.5, "val_data": "a"}, "a")
    assert not fresh.improves(1.6, "a") and fresh.improves(1.4, "a")
    progress.compare_with_best(None, "a")
    assert progress.best_val_loss == math.inf and progress.improves(9.0, "a")
