"""The lock of a run that has ended is taken over, that of a living one never."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rwkv_train.errors import ConfigError
from rwkv_train.training.start import run_lock
from rwkv_train.training.start.lock_owner import Owner, boot_id
from rwkv_train.training.start.run_lock import LOCK_FILE, RunLock
from tests.training.start.lock_files import dead_process


def leave_owner(folder: Path, age: float = 0, **changes: object) -> Path:
    """Leaves the lock of a run of another machine, last touched `age` seconds ago."""
    values = {"id": "1f", "process": 1, "host": socket.gethostname(), "since": "2024-02-03"}
    values |= {"boot": "another start", "container": "pid:[1]", **changes}
    path = folder / LOCK_FILE
    path.write_text(json.dumps(values))
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.fixture
def beating() -> Iterator[Callable[[Path], None]]:
    """Touches a file like a run that lives."""
    ended, threads = threading.Event(), []

    def start(path: Path, shift: float = 0) -> None:
        def touch() -> None:
            while not ended.wait(0.02):
                os.utime(path, (time.time() + shift,) * 2)

        threads.append(threading.Thread(target=touch))
        threads[0].start()

    yield start
    ended.set()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("locks", [True, None])
@pytest.mark.parametrize("age", [3600, 0, -3600])
def test_a_silent_run_of_another_machine_is_taken_over_whatever_the_clocks_say(
    tmp_path: Path, quick: None, monkeypatch, capsys, locks: bool | None, age: float
):
    monkeypatch.setattr(run_lock, "_lock", lambda _: locks)
    leave_owner(tmp_path, age)
    begun = time.monotonic()
    with RunLock(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["process"] == os.getpid()
    # only one that is old by the file server's clock is not waited for until it counts as dead
    assert (time.monotonic() - begun >= 0.5) == (age < 3600)
    out = capsys.readouterr().out
    assert "waiting for a sign of life, at most 0.5 s" in out
    assert f"taking over {tmp_path} from process 1 on {socket.gethostname()}" in out


@pytest.mark.parametrize("shift", [0, 3600, -3600])
# One kernel's own locks tell at once.
@pytest.mark.parametrize(("locks", "boot"), [(True, "other"), (None, "other"), (None, "own")])
def test_a_run_that_shows_signs_of_life_is_never_taken_over(
    tmp_path: Path, quick: None, monkeypatch, beating, locks: bool | None, shift: float, boot: str
):
    monkeypatch.setattr(run_lock, "_lock", lambda _: locks)
    # In another container of this machine process 1 is somebody else.
    options = {"boot": boot_id(), "process": os.getpid()} if boot == "own" else {}
    path = leave_owner(tmp_path, -shift, **options)
    beating(path, shift)
    with pytest.raises(ConfigError, match="has just shown that it lives"), RunLock(tmp_path):
        pass
    assert json.loads(path.read_text())["id"] == "1f"
    assert [p.name for p in tmp_path.iterdir()] == [LOCK_FILE]


@pytest.mark.parametrize("locks", [True, None])
def test_a_dead_process_of_this_start_of_the_machine_is_taken_over_at_once(
    tmp_path: Path, monkeypatch, capsys, locks: bool | None
):
    monkeypatch.setattr(run_lock, "_lock", lambda _: locks)
    own = Owner.of_this_process("")
    leave_owner(tmp_path, boot=own.boot, container=own.container, process=dead_process())
    with RunLock(tmp_path):
        assert "waiting" not in capsys.readouterr().out
