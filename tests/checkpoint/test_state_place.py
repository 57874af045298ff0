"""A place of second copies: what a run writes and deletes there, and what it leaves alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rwkv_train.checkpoint.names import COPIES_FILE
from rwkv_train.checkpoint.resume import StateFile, list_states, load_state, save_state
from rwkv_train.checkpoint.retention import KeepRule
from rwkv_train.checkpoint.state_place import StatePlace, require_no_other_run
from rwkv_train.errors import CheckpointError, ConfigError
from tests.checkpoint.fake_lock import Lock
from tests.checkpoint.small_states import small_state


def place_of(
    tmp_path: Path, run: str = "one", lock: Lock | None = None, **rule: int | None
) -> StatePlace:
    keep = KeepRule(**{"last": 2, **rule})
    return StatePlace(tmp_path / "place", keep, None, run, lock or Lock())


def saved(tmp_path: Path, step: int, run: str = "one", name: str = "") -> StateFile:
    """A state of `step` steps of the project folder."""
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    path = folder / (name or f"rwkv-step-{step}.state")
    save_state(path, small_state(step, run=run))
    return next(state for state in list_states(folder) if state.path == path)


def copy(place: StatePlace, *states: StateFile, beside: tuple[Path, ...] = ()) -> None:
    for state in states:
        place.copy(state, beside, lambda: True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != COPIES_FILE)


def test_every_place_keeps_the_newest_of_its_own_copies(tmp_path: Path):
    place = place_of(tmp_path, last=2, every=20)
    copy(place, *(saved(tmp_path, step) for step in (10, 20, 30, 40, 50)))
    assert names(place.folder) == [f"rwkv-step-{step}.state" for step in (20, 40, 50)]
    assert place.newest is not None and place.newest.step == 50
    # The project folder is not its business.
    assert len(names(tmp_path / "run")) == 5


def test_it_goes_on_where_the_start_before_ended(tmp_path: Path):
    copy(place_of(tmp_path), saved(tmp_path, 10), saved(tmp_path, 20))
    place = place_of(tmp_path)
    place.claim()
    assert place.newest is not None and place.newest.step == 20
    copy(place, saved(tmp_path, 30))
    assert names(place.folder) == ["rwkv-step-20.state", "rwkv-step-30.state"]


def test_what_this_run_has_not_written_stays(tmp_path: Path):
    folder = tmp_path / "place"
    folder.mkdir()
    # Of the same run, but put there by somebody; of a version that told no run; no state at all.
    shutil.copy(saved(tmp_path, 5).path, folder)
    save_state(folder / "rwkv-step-6.state", small_state(6))
    (folder / "rwkv-step-7.state").write_bytes(b"a letter")
    place = place_of(tmp_path, last=1)
    copy(place, saved(tmp_path, 10), saved(tmp_path, 20))
    left = [f"rwkv-step-{step}.state" for step in (20, 5, 6, 7)]
    assert names(folder) == sorted(left)


def test_a_name_that_is_taken_by_something_else_is_given_back_to_nobody(tmp_path: Path):
    folder = tmp_path / "place"
    folder.mkdir()
    (folder / "rwkv-final.state").write_bytes(b"a letter")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"linked")
    (folder / "rwkv-0.state").symlink_to(elsewhere)
    place = place_of(tmp_path)
    copy(place, saved(tmp_path, 5, name="rwkv-0.state"))
    copy(place, saved(tmp_path, 10, name="rwkv-final.state"))
    assert (folder / "kept-1-rwkv-final.state").read_bytes() == b"a letter"
    assert elsewhere.read_bytes() == b"linked"
    assert load_state(folder / "rwkv-final.state")["step"] == 10
    # Its own, of an earlier end, is replaced.
    copy(place, saved(tmp_path, 30, name="rwkv-final.state"))
    assert load_state(folder / "rwkv-final.state")["step"] == 30
    assert len(names(folder)) == 4


def test_a_place_of_another_run_is_refused(tmp_path: Path):
    copy(place_of(tmp_path), saved(tmp_path, 10))
    with pytest.raises(ConfigError) as caught:
        require_no_other_run(tmp_path / "place", "another")
    assert "holds rwkv-step-10.state of another run (one, this one is another)" in str(caught.value)
    with pytest.raises(ConfigError):
        copy(place_of(tmp_path, "another"), saved(tmp_path, 20, "another"))
    assert names(tmp_path / "place") == ["rwkv-step-10.state"]
    require_no_other_run(tmp_path / "place", "one")
    require_no_other_run(tmp_path / "missing", "one")


def test_the_record_of_another_run_counts_for_nothing(tmp_path: Path):
    folder = tmp_path / "place"
    folder.mkdir()
    # Of a version that told no run, so that nothing but the record says whose it is.
    digest = save_state(folder / "rwkv-step-10.state", small_state(10))
    entry = {"digest": digest, "tokens": 100, "step": 10}
    record = {"run": "one", "written": {"rwkv-step-10.state": entry}}
    (folder / COPIES_FILE).write_text(json.dumps(record))
    place = place_of(tmp_path, "another", last=1)
    copy(place, *(saved(tmp_path, step, "another") for step in (20, 30)))
    assert names(folder) == ["rwkv-step-10.state", "rwkv-step-30.state"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"run": "one", "written": 3}'])
def test_a_damaged_record_deletes_nothing(tmp_path: Path, content: bytes):
    place = place_of(tmp_path, last=1)
    copy(place, saved(tmp_path, 10))
    (place.folder / COPIES_FILE).write_bytes(content)
    place = place_of(tmp_path, last=1)
    copy(place, saved(tmp_path, 20), saved(tmp_path, 30))
    assert names(place.folder) == ["rwkv-step-10.state", "rwkv-step-30.state"]
    assert json.loads((place.folder / COPIES_FILE).read_bytes())["run"] == "one"


def test_files_beside_a_state_are_copied_when_they_have_changed(tmp_path: Path):
    place, log = place_of(tmp_path), tmp_path / "metrics.jsonl"
    log.write_text("1\n")
    gone = tmp_path / "gone"
    copy(place, saved(tmp_path, 10), beside=(log, gone))
    (place.folder / "metrics.jsonl").write_text("marked\n")
    copy(place, saved(tmp_path, 20), beside=(log,))
    assert (place.folder / "metrics.jsonl").read_text() == "marked\n"
    log.write_text("1\n2\n")
    copy(place, saved(tmp_path, 30), beside=(log,))
    assert (place.folder / "metrics.jsonl").read_text() == "1\n2\n"


def test_without_room_nothing_is_begun_and_old_copies_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    place = place_of(tmp_path, last=1)
    copy(place, saved(tmp_path, 10))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    with pytest.raises(CheckpointError) as caught:
        copy(place, saved(tmp_path, 20))
    assert f"{place.folder} is full: rwkv-step-20.state needs 1.1 MB and 1.0 MB are free" in str(
        caught.value
    )
    assert names(place.folder) == ["rwkv-step-10.state"]


def test_a_place_that_vanished_and_came_back_goes_on(tmp_path: Path):
    lock = Lock()
    place = place_of(tmp_path, lock=lock)
    copy(place, saved(tmp_path, 10))
    place.folder.rename(tmp_path / "unmounted")
    with pytest.raises(CheckpointError) as caught:
        copy(place, saved(tmp_path, 20))
    assert "place cannot be used: No such file or directory" in str(caught.value)
    # Not made anew: it would be a folder on the disk below.
    assert not place.folder.exists()
    (tmp_path / "unmounted").rename(place.folder)
    copy(place, saved(tmp_path, 30))
    assert names(place.folder) == ["rwkv-step-10.state", "rwkv-step-30.state"]
    assert lock.taken == 1


def test_an_empty_mount_point_is_not_taken_for_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    place = place_of(tmp_path)
    copy(place, saved(tmp_path, 10))
    monkeypatch.setattr(place, "_device", -1)
    with pytest.raises(CheckpointError) as caught:
        copy(place, saved(tmp_path, 20))
    assert "is on another disk than before; is it mounted?" in str(caught.value)


def test_a_place_that_another_run_took_over_is_left_to_it(tmp_path: Path):
    lock = Lock()
    place = place_of(tmp_path, lock=lock)
    copy(place, saved(tmp_path, 10))
    lock.owned, lock.refusal = False, ConfigError("another run works there")
    with pytest.raises(ConfigError):
        copy(place, saved(tmp_path, 20))
    assert names(place.folder) == ["rwkv-step-10.state"]
    # It has ended.
    lock.refusal = None
    copy(place, saved(tmp_path, 30))
    assert lock.taken == 2


def test_what_a_killed_copy_left_is_cleared_up(tmp_path: Path):
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "rwkv-1.state.7-aa.partial").write_bytes(b"half")
    place_of(tmp_path).claim()
    assert names(tmp_path / "place") == []
