"""A run resumes from the newest state that verifies, in whichever place it is, and says which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rwkv_train.checkpoint.names import COPIES_FILE
from rwkv_train.checkpoint.resume import save_state
from rwkv_train.config.schema import TrainConfig
from rwkv_train.errors import CheckpointError, ConfigError
from rwkv_train.training.start.base_model import base_record
from rwkv_train.training.start.restored_files import restore_files
from rwkv_train.training.start.resume_point import Fresh, FromState, find_resume_point
from tests.checkpoint.small_states import save_small_folder, small_state

WEIGHT = "emb.weight"


def write_state(folder: Path, step: int, name: str = "", **more: Any) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / (name or f"rwkv-step-{step}.state")
    state = {"weights": {WEIGHT: torch.full((3, 2), float(step))}, "moments": {"exp_avg": {}}}
    counts = {"optimizer": "adamw", "optimizer_steps": step, "step": step, "tokens_per_step": 100}
    save_state(path, {**state, **counts, **more})
    return path


def damage(path: Path, step: int = 20) -> None:
    """Changes a bit of a weight."""
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((6,), float(step)).numpy().tobytes())] ^= 1
    path.write_bytes(content)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """The project folder and two places, none of which is there."""
    return tmp_path / "out", tmp_path / "near", tmp_path / "far"


def find(folders: tuple[Path, Path, Path], **settings: Any) -> FromState:
    point = find_resume_point(TrainConfig(proj_dir=str(folders[0]), **settings), folders[1:])
    assert isinstance(point, FromState) and point.folder == folders[0]
    return point


def put_back(folders: tuple[Path, Path, Path]) -> FromState:
    """What is begun with once the files beside the copies of the run "one" are there again."""
    if not (folders[1] / COPIES_FILE).exists():
        (folders[1] / COPIES_FILE).write_text('{"run": "one"}')
    point = restore_files(find(folders), folders[0], folders[1:], "one")
    assert isinstance(point, FromState)
    return point


def test_without_any_state_the_run_is_new(folders):
    assert find_resume_point(TrainConfig(proj_dir=str(folders[0])), folders[1:]) == Fresh()


def test_a_lost_project_folder_is_made_up_by_the_newest_copy(folders):
    write_state(folders[1], 30)
    newest = write_state(folders[2], 40, epoch=3)
    point = find(folders)
    assert (point.path, point.epoch) == (newest, 3)
    assert point.notes == (
        f"the run goes on from the copy {newest}, after 40 steps: {folders[0]} holds no state",
    )
    assert point.describe(40).startswith(f"{newest}: exact continuation at step 40")


def test_a_newer_copy_wins_over_the_folder_and_the_folder_over_an_older_one(folders):
    write_state(folders[0], 20)
    newer = write_state(folders[1], 30)
    point = find(folders)
    assert point.path == newer and point.notes == (
        f"the run goes on from the copy {newer}, after 30 steps: the newest in {folders[0]} is the "
        "older rwkv-step-20.state, after 20 steps",
    )
    own = write_state(folders[0], 40)
    point = find(folders)
    assert point.path == own and point.notes == ()


def test_of_equal_states_the_one_in_the_folder_is_read(folders):
    for folder in (folders[2], folders[1], folders[0]):
        write_state(folder, 20)
    point = find(folders)
    assert point.path.parent == folders[0] and point.notes == ()


def test_a_damaged_state_is_named_and_its_copy_taken(folders):
    paths = [write_state(folder, 20) for folder in folders]
    damage(paths[0])
    damage(paths[1])
    point = find(folders)
    assert point.path == paths[2]
    first, second, used = point.notes
    assert first.startswith(f"passed over: {paths[0]} is damaged")
    assert second.startswith(f"passed over: {paths[1]} is damaged")
    assert used.endswith(f"what {folders[0]} has of that place was passed over")


def test_a_damaged_newest_copy_gives_way_to_the_older_state(folders):
    own = write_state(folders[0], 20)
    torn = write_state(folders[1], 30)
    torn.write_bytes(torn.read_bytes()[:200])
    point = find(folders)
    assert point.path == own
    assert len(point.notes) == 1 and point.notes[0].startswith(f"passed over: {torn} is truncated")


def test_where_all_are_damaged_nothing_is_begun_anew(folders):
    for folder in folders:
        damage(write_state(folder, 20))
    with pytest.raises(CheckpointError) as caught:
        find(folders)
    assert all(str(folder) in str(caught.value) for folder in folders)


def test_a_place_that_does_not_answer_is_named_and_passed_over(
    folders, monkeypatch: pytest.MonkeyPatch
):
    own = write_state(folders[0], 20)
    folders[1].mkdir()
    iterdir = Path.iterdir

    def stale(path: Path):
        if path == folders[1]:
            raise OSError(116, "Stale file handle")
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", stale)
    point = find(folders)
    assert point.path == own
    assert point.notes == (f"passed over: {folders[1]} cannot be read: Stale file handle",)


@pytest.mark.parametrize("stage", [0, 1])
def test_a_new_beginning_does_not_write_over_copies(folders, stage: int):
    write_state(folders[1], 20)
    with pytest.raises(ConfigError) as caught:
        find_resume_point(
            TrainConfig(proj_dir=str(folders[0]), train_stage=stage),  # type: ignore[arg-type]
            folders[1:],
        )
    assert f"{folders[1]} already holds rwkv-step-20.state" in str(caught.value)


def test_what_lies_beside_a_copy_is_put_back_where_it_is_missing(folders):
    out, near, _ = folders
    copy = write_state(near, 20, epoch=0)
    beside = {"metrics.jsonl": "old", "starts.jsonl": "1", "best.pth": "b"}
    # No other weights, nor what belongs beside them.
    others = {"rwkv-0.pth": "w", "rwkv-0.lora.json": "{}", "rwkv-final.pth": "w", "run.lock": ""}
    for name, content in {**beside, **others}.items():
        (near / name).write_text(content)
    out.mkdir()
    (out / "metrics.jsonl").write_text("newer")
    point = put_back(folders)
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        "metrics.jsonl": "newer",
        "starts.jsonl": "1",
        "best.pth": "b",
    }
    assert point.notes[1] == f"put back from {near}: best.pth, starts.jsonl"
    assert point.path == copy


def test_files_of_another_run_are_not_put_back(folders):
    out, near, far = folders
    write_state(near, 20, epoch=0)
    far.mkdir()
    out.mkdir()
    for folder, run in ((near, "another"), (far, "one")):
        (folder / COPIES_FILE).write_text(f'{{"run": "{run}"}}')
        (folder / "metrics.jsonl").write_text(run)
    put_back(folders)
    assert (out / "metrics.jsonl").read_text() == "one"


def test_a_state_of_the_folder_puts_nothing_back(folders):
    write_state(folders[0], 20, epoch=0)
    point = find(folders)
    assert restore_files(point, folders[0], folders[1:], "one") is point


def test_the_end_of_a_run_comes_back_with_its_weights(folders):
    out, near, _ = folders
    write_state(near, 20, "rwkv-final.state")
    for name in ("rwkv-final.pth", "rwkv-final.merged.pth"):
        (near / name).write_text(name)
    out.mkdir()
    put_back(folders)
    assert sorted(path.name for path in out.iterdir()) == [
        "rwkv-final.merged.pth",
        "rwkv-final.pth",
    ]


def test_a_frozen_base_model_is_found_beside_the_copy_and_put_back(folders):
    out, near, _ = folders
    base = {"head.weight": torch.ones(2, 2)}
    near.mkdir()
    torch.save(base, near / "rwkv-init.pth")
    record = base_record(near / "rwkv-init.pth", near, base)
    write_state(near, 20, base=record, epoch=0)
    point = find(folders)
    assert point.base == near / "rwkv-init.pth"
    out.mkdir()
    point = put_back(folders)
    assert point.base == out / "rwkv-init.pth"
    # What it remembers from here on does not lead to the place.
    assert point.load().base == record


def test_a_file_that_cannot_be_put_back_is_named(folders, monkeypatch: pytest.MonkeyPatch):
    out, near, _ = folders
    write_state(near, 20, epoch=0)
    (near / "metrics.jsonl").write_text("1")
    out.mkdir()
    monkeypatch.setattr(Path, "replace", lambda path, target: path.rename(out / "x" / "y"))
    point = put_back(folders)
    assert point.notes[1].startswith("not put back: cannot copy metrics.jsonl to ")
    assert list(out.iterdir()) == []


def test_a_torn_swapped_or_lost_part_of_a_copy_is_named_and_the_older_state_taken(
    folders, tmp_path: Path
):
    own = write_state(folders[0], 20)
    copy = folders[1] / "rwkv-step-30.state"
    folders[1].mkdir()
    other = tmp_path / "rwkv-step-31.state"
    save_small_folder(copy, small_state(300, epoch=1), 3)
    save_small_folder(other, small_state(310, epoch=1), 3)
    assert find(folders).path == copy
    part = copy / "__1_0.distcp"
    whole = part.read_bytes()
    for content in (whole[:-1], (other / part.name).read_bytes(), None):
        part.unlink()
        if content is not None:
            part.write_bytes(content)
        else:
            part.with_name("elsewhere").write_bytes(whole)
        point = find(folders)
        assert point.path == own
        assert len(point.notes) == 1 and point.notes[0].startswith(f"passed over: {copy} is ")
        assert part.name in point.notes[0]
        part.write_bytes(b"")
