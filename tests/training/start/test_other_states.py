"""A resumed state of another run, or of other data, is refused or told."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import train
from rwkv_train.checkpoint.resume import load_state, save_state
from rwkv_train.training.start.run_identity import read_starts
from tests.training.start.paused_runs import Resume, line


def test_a_state_of_another_run_is_refused_unless_it_is_accepted(
    resume: Resume, paused: Path, texts: Path, tmp_path: Path
):
    other = tmp_path / "other"
    assert train.main(line(other, data_file=texts / "a", random_seed=1, max_steps=8)) == 0
    status, told = resume()
    assert status == 0, told
    # Further in the data than this folder's own.
    shutil.copy(other / "rwkv-1.state", tmp_path / "out" / "rwkv-1.state")
    status, told = resume(max_steps=9)
    assert status == 2 and "rwkv-1.state is of another run" in told, told
    assert "by moving rwkv-1.state away" in told
    assert told.rstrip().endswith("--accept_changes run")
    status, told = resume(max_steps=9, accept_changes="run")
    assert status == 0 and "is of another run" in told and "exact continuation" not in told
    # From here on the folder holds the run that was taken over.
    assert "exact continuation" in resume(max_steps=10)[1]


def test_a_state_that_was_moved_to_an_empty_folder_is_the_same_run(
    resume: Resume, paused: Path, tmp_path: Path
):
    folder = tmp_path / "out"
    folder.mkdir()
    shutil.copy(paused / "rwkv-0.state", folder)
    status, told = resume()
    assert status == 0 and "exact continuation at step 4\n" in told, told
    own, moved = (read_starts(place)[-1] for place in (paused, folder))
    assert own["run"] == moved["run"] == load_state(folder / "rwkv-1.state")["run"]


def test_a_state_that_does_not_tell_its_data_is_resumed_and_that_is_said(
    resume: Resume, paused: Path, texts: Path, tmp_path: Path
):
    state = load_state(paused / "rwkv-0.state")
    older = {name: value for name, value in state.items() if name not in ("data", "run", "format")}
    (tmp_path / "out").mkdir()
    save_state(tmp_path / "out" / "rwkv-0.state", older)
    # Without their identities the settings tell it, where they do.
    for changes in ({"data": "c"}, {"data_file": f"{texts / 'a'}:1,{texts / 'c'}:1"}):
        status, told = resume(**changes)
        assert status == 2 and "the state does not tell its data, so that" in told, told
        assert told.rstrip().endswith("--accept_changes data_file")
    status, told = resume()
    assert status == 0 and "does not tell its data, which were not compared" in told, told
    assert "exact continuation at step 4, if the data is what it was\n" in told


def test_held_out_slots_of_grown_data_were_trained_on(
    texts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    split = {"val_split": 9, "max_steps": 6}
    assert train.main(line(tmp_path / "out", data_file=texts / "a", **split)) == 0
    capfd.readouterr()
    assert train.main(line(tmp_path / "out", data_file=texts / "b", **split)) == 2
    told = capfd.readouterr().err
    assert "of the 9 samples that --val_split holds out are among those that were trained" in told
    assert "--accept_changes data_file" in told
