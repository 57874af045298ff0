"""Runs with second copies: a lost folder, a dead place, another run's place, a lock."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

import train
from rwkv_train.checkpoint.resume import list_states, load_state
from rwkv_train.config.machine_schema import SafetyConfig
from rwkv_train.config.schema import RunConfig
from rwkv_train.errors import ConfigError
from rwkv_train.planning.file_sizes import run_files
from rwkv_train.training.launchers.launch import Launch
from rwkv_train.training.start import state_copies
from rwkv_train.training.start.memory_limits import MemoryLimit
from rwkv_train.training.start.run_identity import read_starts
from rwkv_train.training.start.run_lock import LOCK_FILE
from rwkv_train.training.start.state_copies import PlaceLock, StateCopies
from tests.config.resolving import resolved
from tests.training.runs import assert_same_weights, loss_steps
from tests.training.start.paused_runs import Resume, line


@pytest.fixture(scope="module")
def whole(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert train.main(line(folder, data_file=texts / "a", max_steps=12)) == 0
    return folder


def states(folder: Path) -> list[str]:
    return [state.path.name for state in list_states(folder)]


def test_a_run_whose_folder_is_lost_ends_with_the_same_bits(
    texts: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    out, near, far = (tmp_path / name for name in ("out", "near", "far"))
    given = {
        "data_file": texts / "a",
        "save_every_steps": 1,
        "state_copies": f"{near}:keep_last=1,{far}:keep_last=3:every_steps=4",
    }
    assert train.main(line(out, **given)) == 0
    assert states(near) == ["rwkv-0.state"] and not (near / LOCK_FILE).exists()
    # As a new machine with an empty disk, and a place that nobody can read.
    shutil.rmtree(out)
    newest = near / "rwkv-0.state"
    damaged = newest.read_bytes()[:5000]
    newest.write_bytes(damaged)
    capfd.readouterr()
    assert train.main(line(out, **given, max_steps=12)) == 0
    told = capfd.readouterr().out
    assert f"{far}/rwkv-0.state: exact continuation at step 4\n" in told
    assert f"passed over: {newest} is truncated or damaged" in told
    assert f"the run goes on from the copy {far}/rwkv-0.state, after 4 steps: {out} holds" in told
    assert f"second copies in {near} (the last 1)" in told
    assert_same_weights(out / "rwkv-final.pth", whole / "rwkv-final.pth")
    # Its past is there too, and it is the same run.
    assert loss_steps(out) == list(range(12))
    runs = {start["run"] for start in read_starts(out)}
    assert len(read_starts(out)) == 2 and runs == {load_state(out / "rwkv-final.state")["run"]}
    for place in (near, far):
        assert states(place)[0] == "rwkv-final.state"
        assert_same_weights(place / "rwkv-final.pth", out / "rwkv-final.pth")
        assert load_state(place / "rwkv-final.state")["step"] == 12
    # What cannot be read is nobody's to delete.
    left = [near / "rwkv-0.state", near / "kept-1-rwkv-0.state"]
    assert damaged in [path.read_bytes() for path in left if path.exists()]
    assert not [*near.glob("*.partial"), *far.glob("*.partial")]


def test_a_finished_run_gives_its_end_to_a_place_that_lacks_it(
    texts: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    out, place = tmp_path / "out", tmp_path / "place"
    shutil.copytree(whole, out)
    given = {"data_file": texts / "a", "max_steps": 12, "state_copies": place}
    assert train.main(line(out, **given)) == 0
    assert "is finished" in capfd.readouterr().out
    assert states(place) == ["rwkv-final.state"]
    assert_same_weights(place / "rwkv-final.pth", whole / "rwkv-final.pth")


def test_a_dead_place_is_a_warning_and_the_run_goes_on(resume: Resume, tmp_path: Path, texts: Path):
    (tmp_path / "file").write_text("")
    status, told = resume(
        save_every_steps=1, max_steps=7, state_copies=f"{tmp_path}/file/dead,{tmp_path}/good"
    )
    assert status == 0, told
    assert told.count("WARNING: no copy in") == 1
    assert f"no copy in {tmp_path}/file/dead: {tmp_path}/file/dead cannot be used" in told
    assert states(tmp_path / "good")[0] == "rwkv-1.state"
    assert load_state(tmp_path / "good" / "rwkv-1.state")["step"] == 7


def test_a_place_of_another_run_is_refused_before_anything_is_written(
    resume: Resume, texts: Path, tmp_path: Path
):
    other, place = tmp_path / "other", tmp_path / "place"
    copies = {"data_file": texts / "a", "state_copies": place}
    assert train.main(line(other, random_seed=1, **copies, max_steps=2)) == 0
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    # Older than the folder's own state, and newer.
    status, told = resume(state_copies=place)
    assert status == 2 and f"--state_copies {place} holds rwkv-0.state of another run" in told
    assert before == {path.name: path.read_bytes() for path in place.iterdir()}
    assert train.main(line(other, random_seed=1, **copies, max_steps=8)) == 0
    status, told = resume(state_copies=place)
    assert status == 2 and "rwkv-1.state is of another run" in told


def test_a_run_that_works_in_a_place_keeps_others_out(resume: Resume, tmp_path: Path, holder):
    place = tmp_path / "place"
    place.mkdir()
    holder(place)
    status, told = resume(state_copies=place)
    assert status == 2 and f"another run works in {place}" in told, told


def test_a_place_that_cannot_be_written_is_told_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    opened = os.open

    def read_only(path, flags, *mode, **keywords):
        if flags & os.O_CREAT and str(path).startswith(str(tmp_path)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, flags, *mode, **keywords)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(Exception) as caught:
        PlaceLock(tmp_path).acquire()
    assert str(caught.value) == f"{tmp_path} cannot be used: Read-only file system"


def test_a_lock_whose_file_has_gone_is_not_owned(tmp_path: Path):
    lock = PlaceLock(tmp_path)
    assert not lock.is_owned()
    lock.acquire()
    assert lock.is_owned()
    (tmp_path / LOCK_FILE).unlink()
    assert not lock.is_owned()
    lock.release()
    lock.acquire()
    assert lock.is_owned()
    lock.release()
    assert not (tmp_path / LOCK_FILE).exists()


def copies_of(folder: Path, node: int, nodes: int = 2) -> StateCopies:
    launch = Launch("test", world_size=nodes, rank=node, node_rank=node, num_nodes=nodes)
    given = SafetyConfig(state_copies=f"partner:{folder}:keep_last=2")
    return StateCopies(RunConfig(safety=given), SimpleNamespace(launch=launch))


def test_a_partner_whose_memory_is_too_small_refuses_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config, _ = resolved("--n_layer 2 --n_embd 64")
    state = run_files(config).state
    monkeypatch.setattr(state_copies, "file_system", lambda folder: "tmpfs")
    usage = shutil.disk_usage(tmp_path)
    folder = tmp_path / "memory" / "run"
    for free, is_refused in ((3 * state, False), (3 * state - 1, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, f=free: usage._replace(free=f))
        if is_refused:
            with pytest.raises(ConfigError, match=r"of which 3 states of .* lower keep_last"):
                copies_of(folder, 1).require_memory(config, 0)
            # What is there already is this run's, and gives way.
            folder.mkdir(parents=True)
            (folder / "rwkv-step-1.state").write_bytes(b"x")
        copies_of(folder, 1).require_memory(config, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    # Not the memory of this machine; a disk tells when it is full.
    copies_of(folder, 0).require_memory(config, 0)
    monkeypatch.setattr(state_copies, "file_system", lambda folder: "ext4")
    copies_of(folder, 1).require_memory(config, 0)


def test_a_partner_whose_memory_the_run_itself_needs_refuses_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config, _ = resolved("--n_layer 2 --n_embd 64")
    copies = 3 * run_files(config).state
    monkeypatch.setattr(state_copies, "file_system", lambda folder: "tmpfs")
    limits = [
        MemoryLimit(copies + 5_000_000_000, "this machine", is_shared=True),
        # Of a process, which no file in memory counts against.
        MemoryLimit(1, "ulimit -v", is_shared=False),
    ]
    monkeypatch.setattr(state_copies, "host_limits", lambda processes: limits)
    partner = copies_of(tmp_path / "memory", 1)
    partner.require_memory(config, 5_000_000_000)
    with pytest.raises(ConfigError, match=r"are free beside the 5.0 GB of the run itself; lower"):
        partner.require_memory(config, 5_000_000_001)


def test_without_a_second_machine_a_note_says_that_there_is_no_partner(tmp_path: Path):
    assert copies_of(tmp_path, 0, nodes=1).notes[1] == (
        f"no partner machine for {tmp_path}: there is one machine"
    )
    assert len(copies_of(tmp_path, 0).notes) == 1
