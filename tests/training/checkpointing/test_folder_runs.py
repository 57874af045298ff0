"""Runs whose states are folders: they save, resume and end as runs with single files do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rwkv_train.checkpoint.digest import file_digest
from rwkv_train.checkpoint.part_tensors import PartTensors
from rwkv_train.checkpoint.resume import load_state
from rwkv_train.checkpoint.state_folder import read_parts
from rwkv_train.errors import CheckpointError
from rwkv_train.training import step_callback
from rwkv_train.training.checkpointing import part_publisher
from rwkv_train.training.checkpointing.weights_apart import write_apart
from tests.training.runs import weights

Run = Callable[..., int]
TYPES = {
    "all": {"save_best": 1, "val_split": 20, "val_every": 1},
    "lora": {"train_type": "lora", "lora_r": 4, "lora_train": "ln"},
    "states": {"train_type": "states", "load_partial": 1, "rwkv_version": 7},
}


def files(folder: Path, *endings: str) -> dict[str, str]:
    """Name -> digest of the files that the world sees."""
    found = (path for path in folder.iterdir() if path.suffix in endings and path.is_file())
    return {path.name: file_digest(path) for path in found}


@pytest.mark.parametrize("kind", TYPES)
def test_a_run_writes_the_same_weights_with_folders_as_with_files(
    run_training: Run, tmp_path: Path, kind: str
):
    flags = {"max_steps": 7, "epoch_steps": 3, **TYPES[kind]}
    if kind != "all":
        version = flags.get("rwkv_version", 6)
        assert run_training(proj_dir=tmp_path / "base", train_stage=1, rwkv_version=version) == 0
        flags["load_model"] = tmp_path / "base" / "rwkv-init.pth"
    for name in ("file", "folder"):
        out = tmp_path / name
        assert run_training(proj_dir=out, state_format=name, **flags) == 0
        # the end of the run comes from its own state
        assert run_training(proj_dir=out, state_format=name, **{**flags, "max_steps": 9}) == 0
        states = [*out.glob("*.state")]
        assert states and all(path.is_dir() == (name == "folder") for path in states)
        assert not [*out.glob("*.partial")]
    expected = files(tmp_path / "file", ".pth", ".safetensors", ".json")
    found = files(tmp_path / "folder", ".pth", ".safetensors", ".json")
    names = {name for name in expected if name.startswith("rwkv-") or name == "best.pth"}
    assert len(names) >= 3
    for name in names:
        assert found[name] == expected[name], name


def test_the_same_weights_are_written_by_a_process_of_its_own(
    run_training: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    flags = {"max_steps": 2, "epoch_steps": 100}
    assert run_training(proj_dir=tmp_path / "here", state_format="folder", **flags) == 0
    monkeypatch.setattr(part_publisher, "_WORTH_A_PROCESS", 0)
    assert run_training(proj_dir=tmp_path / "apart", state_format="folder", **flags) == 0
    digest = file_digest(tmp_path / "here" / "rwkv-0.pth")
    assert file_digest(tmp_path / "apart" / "rwkv-0.pth") == digest
    assert load_state(tmp_path / "apart" / "rwkv-0.state")["weights_digest"] == digest


def test_a_process_that_cannot_read_the_parts_tells_why(tmp_path: Path):
    (tmp_path / "parts").mkdir()
    path = tmp_path / "rwkv-0.pth"
    path.write_bytes(b"before")
    with pytest.raises(CheckpointError, match=r"\.metadata is damaged"):
        write_apart(tmp_path / "parts", path, torch.bfloat16, {})
    assert path.read_bytes() == b"before" and len([*tmp_path.iterdir()]) == 2


def test_the_older_state_is_taken_where_a_part_is_damaged(
    run_training: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out, whole = tmp_path / "out", tmp_path / "whole"
    flags = {"save_every_steps": 3, "keep_last": 20, "state_format": "folder", "dropout": 0.1}
    assert run_training(proj_dir=whole, **flags) == 0
    assert run_training(max_steps=10, **flags) == 0
    # of the last three one is torn, one lost, one never completed
    newest = [out / f"rwkv-{name}.state" for name in ("1", "step-9", "step-6")]
    part = newest[0] / "__0_0.distcp"
    part.write_bytes(part.read_bytes()[:-1])
    (newest[1] / "__0_0.distcp").unlink()
    (newest[2] / "manifest.json").unlink()
    capsys.readouterr()
    assert run_training(**flags) == 0
    printed = capsys.readouterr().out
    for words in (
        "rwkv-1.state is damaged: its part __0_0.distcp has",
        "rwkv-step-9.state is incomplete: its part __0_0.distcp is gone",
        "rwkv-step-6.state is incomplete: it has no manifest.json",
        "exact continuation at step 5",
    ):
        assert words in printed, words
    # saved again under that name: what lay there is kept
    assert load_state(newest[2])["step"] == 6 and (out / "kept-1-rwkv-step-6.state").is_dir()
    assert file_digest(out / "rwkv-final.pth") == file_digest(whole / "rwkv-final.pth")


def test_a_resumed_run_makes_no_second_model(
    run_training: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    flags = {"state_format": "folder", "dropout": 0.1}
    assert run_training(proj_dir=tmp_path / "whole", **flags) == 0
    assert run_training(max_steps=4, **flags) == 0
    made: list[str] = []
    made_until_restored: list[list[str]] = []
    whole, restore = PartTensors._whole, step_callback.restore_state

    def restored(*given: object) -> None:
        restore(*given)
        made_until_restored.append([*made])

    monkeypatch.setattr(PartTensors, "_whole", lambda t, name: made.append(name) or whole(t, name))
    monkeypatch.setattr(step_callback, "restore_state", restored)
    assert run_training(**flags) == 0
    expected = file_digest(tmp_path / "whole" / "rwkv-final.pth")
    assert file_digest(tmp_path / "out" / "rwkv-final.pth") == expected
    # later they are, one at a time, for the .pth
    assert made_until_restored == [[]] and "emb.weight" in made


def test_a_folder_of_another_run_is_refused(
    run_training: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out, other = tmp_path / "out", tmp_path / "other"
    flags = {"state_format": "folder", "save_every_steps": 4}
    assert run_training(max_steps=4, **flags) == 0
    assert run_training(proj_dir=other, max_steps=8, **flags) == 0
    shutil.copytree(other / "rwkv-1.state", out / "rwkv-1.state")
    before = sorted(path.name for path in out.rglob("*"))
    capsys.readouterr()
    assert run_training(**flags) == 2
    assert "another run" in capsys.readouterr().err
    assert sorted(path.name for path in out.rglob("*")) == before


def test_files_and_folders_follow_one_another(run_training: Run, tmp_path: Path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run_training(proj_dir=whole, epoch_steps=20, dropout=0.1) == 0
    for steps, kind in ((3, "folder"), (6, "file"), (9, "folder"), (None, "file")):
        assert run_training(max_steps=steps, state_format=kind, epoch_steps=20, dropout=0.1) == 0
        # one name all the time, that of the unfinished mini-epoch
        if steps is not None:
            assert (out / "rwkv-0.state").is_dir() == (kind == "folder")
    assert file_digest(out / "rwkv-final.pth") == file_digest(whole / "rwkv-final.pth")
    assert [*read_parts_of(whole)] == [*weights(out / "rwkv-final.pth")]


def read_parts_of(folder: Path) -> list[str]:
    """The names of the weights in the last state of a run."""
    state = folder / "rwkv-final.state"
    return list(read_parts(state)["weights"] if state.is_dir() else load_state(state)["weights"])
