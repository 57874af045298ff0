"""Two runs never share a folder, and a dead run never locks one."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import train
from rwkv_train.errors import ConfigError, TrainingError
from rwkv_train.files import write_atomically
from rwkv_train.training.reporting.metrics_file import MetricsFile
from rwkv_train.training.start import run_lock
from rwkv_train.training.start.run_lock import LOCK_FILE, RunLock
from tests.checkout import ROOT
from tests.training.damaged_runs import Place
from tests.training.runs import loss_steps
from tests.training.start.lock_files import HOLDER, dead_process, leave_lock


def test_a_second_run_is_refused_with_process_host_and_time_of_the_first(
    place: Place, refused: Callable[..., str], holder: Callable[[Path], subprocess.Popen[str]]
):
    process = holder(place.paused)
    line = refused(place.command("--proj_dir", place.paused))
    assert re.search(
        rf"another run works in {place.paused}: process {process.pid} on {socket.gethostname()}, "
        r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d;",
        line,
    ), line


def test_a_run_that_a_launcher_starts_anew_waits_for_the_end_of_the_one_before(
    tmp_path: Path,
    holder: Callable[[Path], subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    process = holder(tmp_path)
    looks: list[float] = []

    def look(seconds: float) -> None:
        # It notices at the second look that it has been cut off.
        looks.append(seconds)
        if len(looks) == 2:
            process.kill()
            process.wait()

    monkeypatch.setattr(run_lock.time, "sleep", look)
    with RunLock(tmp_path, patience=120.0):
        assert len(looks) == 2
    told = capsys.readouterr().out
    assert told.count("waiting at most 120 s") == 1 and "another run works in" in told


def test_a_killed_run_frees_the_folder_at_once(
    tmp_path: Path,
    holder: Callable[[Path], subprocess.Popen[str]],
    capsys: pytest.CaptureFixture[str],
):
    process = holder(tmp_path)
    process.send_signal(signal.SIGKILL)
    # its child still lives
    process.wait()
    with RunLock(tmp_path):
        assert f"from process {process.pid} on {socket.gethostname()}" in capsys.readouterr().out
    assert not (tmp_path / LOCK_FILE).exists()


def test_what_another_host_left_is_refused_with_the_way_out(
    place: Place, refused: Callable[..., str]
):
    leave_lock(place.paused, 1, "elsewhere")
    line = refused(place.command("--proj_dir", place.paused))
    for words in (
        "process 1 on elsewhere, since 2024-02-03 04:05:06",
        f"if it has ended, remove {place.paused / LOCK_FILE}",
    ):
        assert words in line


@pytest.mark.parametrize(
    ("own_host", "alive", "free"), [(True, True, False), (True, False, True), (False, False, False)]
)
def test_where_files_cannot_be_locked_the_words_in_it_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_host: bool, alive: bool, free: bool
):
    monkeypatch.setattr(run_lock, "_lock", lambda _: None)
    process = os.getppid() if alive else dead_process()
    leave_lock(tmp_path, process, socket.gethostname() if own_host else "elsewhere")
    before = (tmp_path / LOCK_FILE).read_bytes()
    if free:
        with RunLock(tmp_path):
            assert json.loads((tmp_path / LOCK_FILE).read_text())["process"] == os.getpid()
    else:
        with pytest.raises(ConfigError, match=f"process {process} "), RunLock(tmp_path):
            pass
        assert (tmp_path / LOCK_FILE).read_bytes() == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"process": "x"}'])
def test_a_lock_whose_writer_was_killed_is_taken_over(tmp_path: Path, content: str):
    (tmp_path / LOCK_FILE).write_text(content)
    with RunLock(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["process"] == os.getpid()


def test_the_last_sign_of_life_of_the_run_before_is_kept(tmp_path: Path, capsys):
    with RunLock(tmp_path) as lock:
        assert lock.left_at is None
    leave_lock(tmp_path, dead_process(), socket.gethostname())
    os.utime(tmp_path / LOCK_FILE, (1_000_000.0, 1_000_000.0))
    with RunLock(tmp_path) as lock:
        assert lock.left_at == 1_000_000.0
    assert "taking over" in capsys.readouterr().out


def test_other_ranks_take_no_lock(tmp_path: Path):
    with RunLock(tmp_path, enabled=False) as lock:
        lock.acquire()
        assert not (tmp_path / LOCK_FILE).exists()


@pytest.mark.parametrize("flag", ["--max_steps 1", "--rwkv_version 7"])
def test_the_folder_is_free_after_a_run_and_after_a_refusal(place: Place, flag: str):
    assert train.main(place.command("--proj_dir", place.begun, *flag.split())) in (0, 2)
    assert not (place.begun / LOCK_FILE).exists()


PLACES = {
    "a link": (lambda path: path.symlink_to(path.with_name("victim")), "a symbolic link"),
    "a dangling link": (lambda path: path.symlink_to("nowhere"), "a symbolic link"),
    "a folder": (lambda path: path.mkdir(), "a folder"),
    "a pipe": (os.mkfifo, "a pipe"),
    "a socket": (lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), "no plain file"),
}


@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_file_in_its_place_is_refused_in_one_line(tmp_path: Path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "victim").write_text("precious")
    make, kind = PLACES[place]
    # A short path: that of a socket is limited.
    make(Path(LOCK_FILE))
    with pytest.raises(ConfigError, match=f"run.lock is {kind}") as refused, RunLock(Path()):
        pass
    assert "\n" not in str(refused.value)
    assert (tmp_path / "victim").read_text() == "precious"
    assert {p.name for p in tmp_path.iterdir()} == {LOCK_FILE, "victim"}


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"[" * 100_000,
        b"null",
        b"7",
        b"a note of mine\nin two lines\n",
        b"\0" * 5_000_000,
        b'{"process": 1e400, "host": "h", "since": "s"}',
        b'{"process": -1, "host": "h", "since": "s"}',
        b'{"process": 99999999999999999999, "host": "h", "since": "s"}',
        b'{"process": 5, "host": "a\\nb\\u001b[2J", "since": "s"}',
    ],
)
def test_odd_words_in_a_lock_are_taken_over_in_one_line(
    tmp_path: Path, quick: None, capsys, content: bytes
):
    (tmp_path / LOCK_FILE).write_bytes(content)
    os.link(tmp_path / LOCK_FILE, tmp_path / "another name")
    with RunLock(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["process"] == os.getpid()
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "a run that has not said its name" in out
    # a new file takes the name: what else the old one was is left alone
    assert (tmp_path / "another name").read_bytes() == content


def test_of_many_that_take_over_at_once_one_does(tmp_path: Path, holder):
    leave_lock(tmp_path, dead_process(), socket.gethostname())
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(6)
    ]
    # The one that holds it waits for its input; the others leave.
    while sum(process.poll() is None for process in processes) > 1:
        time.sleep(0.02)
    ended = [process.communicate(b"") for process in processes]
    assert sum(b"held" in out for out, _ in ended) == 1
    assert sum(b"another run" in err for _, err in ended) == 5
    assert not list(tmp_path.iterdir())


def take_away(path: Path) -> None:
    other = path.with_name("other")
    other.write_text(json.dumps({"id": "2", "process": 7, "host": "elsewhere", "since": "now"}))
    other.replace(path)


@pytest.mark.parametrize("lose", [take_away, Path.unlink])
def test_a_run_that_lost_its_lock_gives_no_file_a_name(tmp_path: Path, lose):
    with RunLock(tmp_path) as lock:
        write_atomically(tmp_path / "rwkv-0.pth", b"ours")
        lose(tmp_path / LOCK_FILE)
        before = sorted(p.name for p in tmp_path.iterdir())
        with pytest.raises(TrainingError, match="no longer this run's"):
            write_atomically(tmp_path / "rwkv-0.pth", b"theirs by now")
        # another folder is none of its business
        write_atomically(tmp_path.parent / f"{tmp_path.name}.other", b"")
        assert lock.fault() is None
    assert (tmp_path / "rwkv-0.pth").read_bytes() == b"ours"
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    write_atomically(tmp_path / "rwkv-0.pth", b"after it")


@pytest.mark.parametrize("beats", [True, False])
def test_a_run_whose_lock_is_taken_ends_with_one_line_and_writes_no_checkpoint(
    run_training, tmp_path: Path, monkeypatch, capsys, beats: bool
):
    # Noticed at the next sign of life, or else before the next file is named.
    monkeypatch.setattr(run_lock, "HEARTBEAT", 0.01 if beats else 3600)
    out, record = tmp_path / "out", MetricsFile.on_step

    def lose(self, step, progress):
        record(self, step, progress)
        if step.step == 6:
            take_away(out / LOCK_FILE)
        # a step that takes its time
        time.sleep(0.05 * (step.step >= 6))

    monkeypatch.setattr(MetricsFile, "on_step", lose)
    assert run_training(exit_tokens=128 * 60, save_in_background=0) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1 and "no longer this run's" in lines[0], lines
    found = {p.name for p in out.glob("rwkv-*")}
    assert found == {"rwkv-init.pth", "rwkv-0.pth", "rwkv-0.state"}
    assert json.loads((out / LOCK_FILE).read_text())["id"] == "2"
    # without a beat only the mini-epoch's save finds out
    assert (len(loss_steps(out)) < 10) == beats


def test_a_run_that_lives_touches_its_lock(tmp_path: Path, quick: None):
    with RunLock(tmp_path) as lock:
        os.utime(tmp_path / LOCK_FILE, (0, 0))
        while (tmp_path / LOCK_FILE).stat().st_mtime == 0:
            time.sleep(0.01)
        assert lock.fault() is None
