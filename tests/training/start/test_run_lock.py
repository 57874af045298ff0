"""Two runs never share a folder, and a dead run never locks one."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import train
from rwkv_train.errors import ConfigError
from rwkv_train.training.start import run_lock
from rwkv_train.training.start.run_lock import LOCK_FILE, RunLock
from tests.checkout import ROOT
from tests.training.damaged_runs import Place

# Takes the lock, forks a child that outlives it as a loader worker does, says so, and stays.
HOLDER = """
import os, sys
from pathlib import Path
from rwkv_train.training.start.run_lock import RunLock
with RunLock(Path(sys.argv[1])):
    if os.fork() == 0:
        sys.stdin.read()
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Starts a process that has the lock of a folder."""
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder)],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leave_lock(folder: Path, process: int, host: str) -> None:
    text = json.dumps({"process": process, "host": host, "since": "2024-02-03 04:05:06"})
    (folder / LOCK_FILE).write_text(text)


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


def test_other_ranks_take_no_lock(tmp_path: Path):
    with RunLock(tmp_path, enabled=False) as lock:
        lock.acquire()
        assert not (tmp_path / LOCK_FILE).exists()


@pytest.mark.parametrize("flag", ["--max_steps 1", "--rwkv_version 7"])
def test_the_folder_is_free_after_a_run_and_after_a_refusal(place: Place, flag: str):
    assert train.main(place.command("--proj_dir", place.begun, *flag.split())) in (0, 2)
    assert not (place.begun / LOCK_FILE).exists()
