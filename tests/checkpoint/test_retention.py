"""Which files a run deletes: those that it wrote itself, known by their content."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rwkv_train.checkpoint.digest import file_digest
from rwkv_train.checkpoint.resume import load_state, save_state
from rwkv_train.checkpoint.retention import KeepRule, Retention
from rwkv_train.checkpoint.weights import save_weights
from tests.checkpoint.small_states import save_small_folder, small_state


def write_state(files: Retention, path: Path, step: int) -> Path:
    """As a run does: with the record of what it wrote before."""
    digest = save_state(path, small_state(step, written=files.record()))
    files.add(path, digest, step * 10, step)
    return path


def write_weights(files: Retention, path: Path, step: int) -> Path:
    save_weights(path, {"a": torch.full((1,), float(step))}, torch.float32)
    files.add(path, file_digest(path), step * 10, step)
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def flip(path: Path) -> None:
    """Changes one bit in the middle and neither size nor time: only a reader notices."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def resumed(folder: Path, rule: KeepRule, state: str, **more: object) -> Retention:
    """The files of a run that resumes `state` in a process of its own."""
    path = folder / state
    return Retention(folder, rule, record=load_state(path)["written"], resumed=path, **more)


def test_the_newest_and_every_nth_are_kept(tmp_path: Path):
    files = Retention(tmp_path, KeepRule(last=2, every=20))
    for step in range(5, 55, 5):
        write_state(files, tmp_path / f"rwkv-step-{step}.state", step)
    write_state(files, tmp_path / "rwkv-final.state", 1)
    (tmp_path / "rwkv-3.state").write_bytes(b"unreadable")
    for epoch in range(5):
        write_weights(files, tmp_path / f"rwkv-{epoch}.pth", (epoch + 1) * 10)
    files.apply(tmp_path / "rwkv-step-45.state")
    # 50 is further than the newest written: it was passed over when the run went on
    assert names(tmp_path) == {
        "rwkv-step-50.state",
        "rwkv-step-45.state",
        "rwkv-step-40.state",
        "rwkv-step-20.state",
        "rwkv-final.state",
        "rwkv-3.state",
        *(f"rwkv-{epoch}.pth" for epoch in range(5)),
    }


def test_weights_at_a_multiple_are_kept(tmp_path: Path):
    files = Retention(tmp_path, KeepRule(last=1, every=20, last_weights=1))
    for epoch in range(5):
        write_weights(files, tmp_path / f"rwkv-{epoch}.pth", (epoch + 1) * 10)
    newest = write_state(files, tmp_path / "rwkv-4.state", 50)
    files.apply(newest)
    # mini-epochs 1 and 3 end at steps 20 and 40
    assert names(tmp_path) == {"rwkv-1.pth", "rwkv-3.pth", "rwkv-4.pth", "rwkv-4.state"}


def foreign_copy(folder: Path, old: Path) -> Path:
    return Path(shutil.copy(old, folder / "rwkv-999.pth"))


def replaced(folder: Path, old: Path) -> Path:
    save_weights(old, {"a": torch.zeros(3)}, torch.float32)
    return old


def linked(folder: Path, old: Path) -> Path:
    (folder / "elsewhere").mkdir()
    old.rename(folder / "elsewhere" / old.name)
    old.symlink_to(folder / "elsewhere" / old.name)
    return old


def protected(folder: Path, old: Path) -> Path:
    old.chmod(0o444)
    return old


@pytest.mark.parametrize("what", [foreign_copy, replaced, linked, protected])
@pytest.mark.parametrize("kind", ["pth", "state"])
def test_what_somebody_did_to_a_file_saves_it(
    tmp_path: Path, what: Callable[[Path, Path], Path], kind: str
):
    files = Retention(tmp_path, KeepRule(last=1, last_weights=1))
    write = write_weights if kind == "pth" else write_state
    old = write(files, tmp_path / f"rwkv-0.{kind}", 10)
    gone = write(files, tmp_path / f"rwkv-1.{kind}", 20)
    if what is replaced and kind == "state":
        save_state(old, small_state(11))
        kept = old
    else:
        kept = what(tmp_path, old)
    content = kept.read_bytes()
    write(files, tmp_path / f"rwkv-2.{kind}", 30)
    files.apply(write_state(files, tmp_path / "rwkv-step-31.state", 31))
    assert kept.read_bytes() == content and not gone.exists()


def test_only_files_of_this_run_are_deleted_in_a_folder_with_those_of_another(tmp_path: Path):
    before = Retention(tmp_path, KeepRule(last=9))
    for epoch in range(3):
        write_weights(before, tmp_path / f"rwkv-{epoch}.pth", epoch + 1)
        write_state(before, tmp_path / f"rwkv-{epoch}.state", epoch + 1)
    others = names(tmp_path)
    files = Retention(tmp_path, KeepRule(last=1, last_weights=1))
    for epoch in (3, 4):
        write_weights(files, tmp_path / f"rwkv-{epoch}.pth", epoch + 1)
        files.apply(write_state(files, tmp_path / f"rwkv-{epoch}.state", epoch + 1))
    assert names(tmp_path) == others | {"rwkv-4.pth", "rwkv-4.state"}


def test_a_resumed_run_knows_the_files_that_it_wrote_before(tmp_path: Path):
    files = Retention(tmp_path, KeepRule(last=9))
    for epoch in range(3):
        write_weights(files, tmp_path / f"rwkv-{epoch}.pth", (epoch + 1) * 10)
        write_state(files, tmp_path / f"rwkv-{epoch}.state", (epoch + 1) * 10)
    again = resumed(tmp_path, KeepRule(last=2, last_weights=2), "rwkv-2.state")
    again.apply(write_state(again, tmp_path / "rwkv-step-35.state", 35))
    assert names(tmp_path) == {"rwkv-1.pth", "rwkv-2.pth", "rwkv-2.state", "rwkv-step-35.state"}


@pytest.mark.parametrize("kind", ["pth", "state"])
def test_damaged_files_take_no_place_of_good_ones(tmp_path: Path, kind: str):
    files = Retention(tmp_path, KeepRule(last=9))
    write = write_weights if kind == "pth" else write_state
    for epoch in range(3):
        write(files, tmp_path / f"rwkv-{epoch}.{kind}", (epoch + 1) * 10)
    write_state(files, tmp_path / "rwkv-step-31.state", 31)
    flip(tmp_path / f"rwkv-2.{kind}")
    # the newest one before it is the one that counts
    again = resumed(
        tmp_path, KeepRule(last=2 if kind == "pth" else 3, last_weights=2), "rwkv-step-31.state"
    )
    again.apply(write_state(again, tmp_path / "rwkv-step-40.state", 40))
    left = names(tmp_path)
    assert f"rwkv-1.{kind}" in left, left
    assert (f"rwkv-0.{kind}" in left) == (kind == "pth"), left


def test_another_length_of_mini_epochs_makes_no_new_file_an_old_one(tmp_path: Path):
    files = Retention(tmp_path, KeepRule(last=9))
    for epoch in range(4):
        write_weights(files, tmp_path / f"rwkv-{epoch}.pth", (epoch + 1) * 10)
    write_state(files, tmp_path / "rwkv-3.state", 40)
    again = resumed(tmp_path, KeepRule(last=2, last_weights=2), "rwkv-3.state")
    # mini-epochs of 25 steps from here on: number 1 ends at step 50
    write_weights(again, tmp_path / "rwkv-1.pth", 50)
    again.apply(write_state(again, tmp_path / "rwkv-1.state", 50))
    assert {name for name in names(tmp_path) if name.endswith("pth")} == {
        "rwkv-1.pth",
        "rwkv-3.pth",
    }


def test_a_frozen_base_model_is_never_deleted(tmp_path: Path):
    files = Retention(
        tmp_path, KeepRule(last=9, last_weights=1), protected=[tmp_path / "rwkv-0.pth"]
    )
    for epoch in range(3):
        write_weights(files, tmp_path / f"rwkv-{epoch}.pth", (epoch + 1) * 10)
    files.apply(write_state(files, tmp_path / "rwkv-2.state", 30))
    assert names(tmp_path) == {"rwkv-0.pth", "rwkv-2.pth", "rwkv-2.state"}


def test_the_model_with_its_states_goes_with_them(tmp_path: Path):
    files = Retention(tmp_path, KeepRule(last=1, last_weights=1))
    for epoch in range(2):
        write_weights(files, tmp_path / f"rwkv-{epoch}.pth", epoch + 1)
        write_weights(files, tmp_path / f"rwkv-{epoch}.merged.pth", epoch + 1)
    (tmp_path / "rwkv-5.merged.pth").write_bytes(b"somebody's")
    files.apply(write_state(files, tmp_path / "rwkv-1.state", 2))
    assert names(tmp_path) == {
        "rwkv-1.pth",
        "rwkv-1.merged.pth",
        "rwkv-1.state",
        "rwkv-5.merged.pth",
    }


def write_folder(files: Retention, path: Path, step: int) -> Path:
    """A state in a folder."""
    digest = save_small_folder(path, small_state(step, written=files.record()))
    files.add(path, digest, step * 10, step)
    return path


def test_folders_are_kept_and_deleted_as_files_are(tmp_path: Path):
    files = Retention(tmp_path, KeepRule(last=2))
    write_state(files, tmp_path / "rwkv-step-1.state", 1)
    for step in range(2, 6):
        path = write_folder(files, tmp_path / f"rwkv-step-{step}.state", step)
        files.apply(path)
    assert names(tmp_path) == {"rwkv-step-4.state", "rwkv-step-5.state"}
    files = resumed(tmp_path, KeepRule(last=1), "rwkv-step-5.state")
    files.apply(write_state(files, tmp_path / "rwkv-step-6.state", 6))
    assert names(tmp_path) == {"rwkv-step-6.state"}


# What somebody does to the folder of a state, after which it is no longer the run's to delete.
TOUCHED: dict[str, Callable[[Path], object]] = {
    "a file put in": lambda path: (path / "notes.txt").write_text("mine"),
    "a part lost": lambda path: (path / "__1_0.distcp").unlink(),
    "a bit of a part": lambda path: flip(path / "__1_0.distcp"),
    "protected": lambda path: path.chmod(0o555),
    "a part protected": lambda path: (path / "__1_0.distcp").chmod(0o444),
    "moved and linked": lambda path: path.symlink_to(path.rename(path.with_name("moved"))),
    "another state": lambda path: (
        shutil.rmtree(path),
        save_small_folder(path, small_state(1, x=1)),
    ),
}


@pytest.mark.parametrize("name", TOUCHED)
def test_a_folder_that_somebody_has_touched_stays(tmp_path: Path, name: str):
    files = Retention(tmp_path, KeepRule(last=1))
    path = write_folder(files, tmp_path / "rwkv-step-1.state", 1)
    TOUCHED[name](path)
    files = resumed(
        tmp_path, KeepRule(last=1), write_folder(files, tmp_path / "rwkv-0.state", 2).name
    )
    # unlike a file's, a folder's size and time do not show a changed bit
    files.apply(write_folder(files, tmp_path / "rwkv-step-3.state", 3))
    assert path.exists()
    path.chmod(0o755)
