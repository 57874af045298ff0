"""Which file a run starts from, and what it says about those that it passes over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rwkv_train.checkpoint.digest import file_digest
from rwkv_train.checkpoint.resume import save_state
from rwkv_train.config.schema import TrainConfig
from rwkv_train.errors import CheckpointError, ConfigError
from rwkv_train.training.start.base_model import base_record
from rwkv_train.training.start.resume_point import (
    Fresh,
    FromState,
    FromWeights,
    ResumePoint,
    find_resume_point,
)

STATES = "blocks.0.att.time_state"


def write_weights(path: Path, value: float, name: str = "emb.weight") -> dict[str, torch.Tensor]:
    weights = {name: torch.full((3, 2), value)}
    torch.save(weights, path)
    return weights


def write_state(path: Path, step: int, value: float = 0.0, **more: Any) -> None:
    state = {
        "weights": {"emb.weight": torch.full((3, 2), value)},
        "moments": {"exp_avg": {}},
        "optimizer": "adamw",
        "optimizer_steps": step,
        "step": step,
        "tokens_per_step": 100,
    }
    save_state(path, {**state, **more})


def find(folder: Path, **settings: Any) -> ResumePoint:
    return find_resume_point(TrainConfig(proj_dir=str(folder), **settings))


def value_of(point: ResumePoint) -> float:
    assert not isinstance(point, Fresh)
    return float(point.load().tensors["emb.weight"][0, 0])


def test_an_empty_folder_means_new_weights(tmp_path: Path):
    assert find(tmp_path) == Fresh()
    assert find(tmp_path / "missing") == Fresh()
    assert find(tmp_path).describe(0) == "new initial weights"


def test_stage_1_may_start_from_a_smaller_model(tmp_path: Path):
    donor = tmp_path / "small.pth"
    assert find(tmp_path, train_stage=1, load_model=str(donor)) == Fresh(donor=donor)


def test_a_given_model_is_loaded_where_nothing_lies_in_the_folder(tmp_path: Path):
    write_weights(tmp_path / "base.pth", 4.0)
    point = find(tmp_path / "out", load_model=str(tmp_path / "base.pth"))
    assert isinstance(point, FromWeights) and point.epoch == -1 and point.notes == ()
    assert point.shapes == {"emb.weight": (3, 2)}
    assert point.load().base is None and value_of(point) == 4.0
    assert point.describe(0) == f"weights of {tmp_path / 'base.pth'}, empty optimizer"
    assert point.describe(6).endswith(", at step 6")


def test_the_state_furthest_in_the_data_wins_over_newer_weights(tmp_path: Path):
    write_weights(tmp_path / "rwkv-init.pth", 0.0)
    write_state(tmp_path / "rwkv-0.state", 10, 1.0)
    write_state(tmp_path / "rwkv-step-15.state", 15, 2.0, epoch=0)
    write_weights(tmp_path / "rwkv-1.pth", 3.0)
    point = find(tmp_path)
    assert isinstance(point, FromState) and point.path.name == "rwkv-step-15.state"
    assert (point.epoch, value_of(point), point.load().base) == (0, 2.0, None)
    assert point.notes == (f"{tmp_path / 'rwkv-1.pth'} has no usable training state: passed over",)
    assert (
        point.describe(15)
        == f"{point.path}: exact continuation at step 15, if the data is what it was"
    )


def test_tokens_and_not_steps_tell_how_far_a_state_is(tmp_path: Path):
    write_state(tmp_path / "rwkv-0.state", 10, 1.0, tokens_per_step=300)
    write_state(tmp_path / "rwkv-1.state", 20, 2.0, tokens_per_step=100)
    assert value_of(find(tmp_path)) == 1.0


def test_a_damaged_state_is_passed_over_and_named(tmp_path: Path):
    write_state(tmp_path / "rwkv-0.state", 10, 1.0)
    write_state(tmp_path / "rwkv-1.state", 20, 2.0)
    damaged = bytearray((tmp_path / "rwkv-1.state").read_bytes())
    (tmp_path / "rwkv-1.state").write_bytes(damaged[: len(damaged) // 2])
    point = find(tmp_path)
    assert isinstance(point, FromState) and point.path.name == "rwkv-0.state"
    assert len(point.notes) == 1 and "rwkv-1.state" in point.notes[0]
    assert point.notes[0].startswith("passed over: ")


def test_without_a_state_the_newest_weights_start_and_a_note_says_what_is_lost(tmp_path: Path):
    write_weights(tmp_path / "rwkv-init.pth", 0.0)
    write_weights(tmp_path / "rwkv-2.pth", 2.0)
    write_weights(tmp_path / "rwkv-10.pth", 10.0)
    point = find(tmp_path)
    assert isinstance(point, FromWeights) and (point.epoch, value_of(point)) == (10, 10.0)
    assert len(point.notes) == 1 and "the optimizer starts empty" in point.notes[0]
    (tmp_path / "rwkv-10.pth").write_bytes(b"no checkpoint")
    point = find(tmp_path)
    assert isinstance(point, FromWeights) and point.epoch == 2
    assert point.notes[0].startswith("passed over: ") and "rwkv-10.pth" in point.notes[0]


def test_initial_weights_are_nothing_to_warn_of(tmp_path: Path):
    write_weights(tmp_path / "rwkv-init.pth", 5.0)
    point = find(tmp_path, train_stage=3)
    assert isinstance(point, FromWeights)
    assert (point.epoch, point.notes, value_of(point)) == (-1, (), 5.0)


def test_weights_next_to_a_state_that_are_not_its_own_are_named(tmp_path: Path):
    write_weights(tmp_path / "rwkv-0.pth", 1.0)
    digest = file_digest(tmp_path / "rwkv-0.pth")
    write_state(tmp_path / "rwkv-0.state", 10, 1.0, weights_digest=digest)
    assert find(tmp_path).notes == ()
    write_weights(tmp_path / "rwkv-0.pth", 2.0)
    (note,) = find(tmp_path).notes
    assert "rwkv-0.pth is damaged or from another save" in note


def test_a_state_is_completed_by_its_base_model_wherever_the_folder_lies(tmp_path: Path):
    folder = tmp_path / "moved"
    folder.mkdir()
    base = write_weights(folder / "rwkv-init.pth", 7.0)
    record = base_record(folder / "rwkv-init.pth", folder, base)
    assert record["path"] == "rwkv-init.pth"
    states = {STATES: torch.ones(3, 2)}
    write_state(folder / "rwkv-0.state", 10, weights=states, base=record)
    point = find(folder, train_type="states")
    assert isinstance(point, FromState) and point.base == folder / "rwkv-init.pth"
    assert set(point.shapes) == {"emb.weight", STATES}
    start = point.load()
    assert set(start.tensors) == set(point.shapes) and start.base == record
    write_weights(folder / "rwkv-init.pth", 8.0)
    with pytest.raises(CheckpointError, match="not the base model"):
        point.load()
    (folder / "rwkv-init.pth").unlink()
    with pytest.raises(CheckpointError, match="which is not there"):
        find(folder, train_type="states")


def test_trained_states_find_their_base_model_in_the_folder(tmp_path: Path):
    write_weights(tmp_path / "rwkv-0.pth", 3.0, STATES)
    with pytest.raises(CheckpointError, match="copy their base model"):
        find(tmp_path, train_type="states")
    base = write_weights(tmp_path / "rwkv-init.pth", 7.0)
    point = find(tmp_path, train_type="states")
    assert isinstance(point, FromWeights)
    assert [path.name for path in point.files] == ["rwkv-init.pth", "rwkv-0.pth"]
    start = point.load()
    assert set(start.tensors) == {"emb.weight", STATES}
    # frozen: the run remembers what was in it
    assert start.base == base_record(tmp_path / "rwkv-init.pth", tmp_path, base)


@pytest.mark.parametrize("train_type", ["states", "all"])
def test_supplied_states_are_for_state_tuning_only(tmp_path: Path, train_type: str):
    write_weights(tmp_path / "rwkv-init.pth", 7.0)
    write_weights(tmp_path / "rwkv-init-state.pth", 1.0, STATES)
    point = find(tmp_path, train_type=train_type)
    assert isinstance(point, FromWeights)
    assert (STATES in point.shapes) == (STATES in point.load().tensors) == (train_type == "states")
    assert len(point.notes) == 1 and "rwkv-init-state.pth" in point.notes[0]


def test_loading_twice_gives_the_same_and_changes_nothing(tmp_path: Path):
    write_weights(tmp_path / "rwkv-init.pth", 7.0)
    point = find(tmp_path, train_type="lora")
    first, second = point.load(), point.load()
    assert first.base == second.base and first.base is not None
    assert point == find(tmp_path, train_type="lora")


@pytest.mark.parametrize("stage", [0, 1])
def test_a_new_run_does_not_write_over_an_old_one(tmp_path: Path, stage: int):
    write_state(tmp_path / "rwkv-step-5.state", 5)
    with pytest.raises(ConfigError, match=r"already holds rwkv-step-5\.state"):
        find(tmp_path, train_stage=stage)


def test_what_cannot_be_resumed_is_refused_and_never_replaced_by_new_weights(tmp_path: Path):
    with pytest.raises(ConfigError, match="holds none"):
        find(tmp_path, train_stage=3)
    (tmp_path / "rwkv-0.pth").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        find(tmp_path)
    write_weights(tmp_path / "rwkv-final.pth", 1.0)
    with pytest.raises(ConfigError, match="end of a finished run"):
        find(tmp_path)
