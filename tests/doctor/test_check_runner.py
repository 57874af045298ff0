"""A check that crashes, hangs or raises is a finding, and ends nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rwkv_train.doctor import check_runner as module
from rwkv_train.doctor.check_runner import make_check
from rwkv_train.doctor.check_table import CHECKS, Check
from rwkv_train.doctor.findings import good
from tests.checkout import ROOT
from tests.doctor.planted import plant_program

NINJA = next(check for check in CHECKS if check.name == "ninja")


def child(monkeypatch: pytest.MonkeyPatch, folder: Path, words: str, limit_s: float = 20.0):
    """Returns the findings of a check whose child is this script, and what it told it did."""
    script = folder / "child.py"
    script.write_text(f"import os, signal, sys, time\n{words}\n")
    started = subprocess.Popen

    def start(command, **options):
        return started([sys.executable, "-S", str(script)], **options)

    monkeypatch.setattr(module.subprocess, "Popen", start)
    told: list[str] = []
    found = make_check(NINJA._replace(limit_s=limit_s), folder, told.append)
    return found, told


SAID = """print('"import torch"', flush=True)"""


def test_a_crash_is_a_fault_that_tells_where(monkeypatch, tmp_path):
    words = f"{SAID}\nprint('last words', file=sys.stderr)\nos.kill(os.getpid(), signal.SIGSEGV)"
    (found,), told = child(monkeypatch, tmp_path, words)
    assert found.level == "fault"
    assert found.found == "killed by signal 11 (SIGSEGV) at: import torch: last words"
    assert told == ["import torch"]


def test_a_lack_of_memory_is_guessed_from_the_signal(monkeypatch, tmp_path):
    (found,), _ = child(monkeypatch, tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    assert "often the machine was out of memory" in found.found and "dmesg" in found.remedy


def test_what_hangs_is_ended_with_all_that_it_started(monkeypatch, tmp_path):
    words = (
        f"import subprocess\nother = subprocess.Popen(['sleep', '60'])\n"
        f"open({str(tmp_path / 'other')!r}, 'w').write(str(other.pid))\n{SAID}\ntime.sleep(60)"
    )
    (found,), _ = child(monkeypatch, tmp_path, words, limit_s=1.5)
    assert found.found == "did not end within 2 s at: import torch"
    other = int((tmp_path / "other").read_text())
    for _ in range(200):
        if not is_running(other):
            break
        time.sleep(0.05)
    assert not is_running(other)


def is_running(process: int) -> bool:
    """Whether a process runs; one that nobody has collected does not."""
    try:
        os.kill(process, 0)
        stat = Path(f"/proc/{process}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_words_that_are_no_finding_are_no_crash(monkeypatch, tmp_path):
    line = good("first").to_json()
    words = f"import json\nprint('welcome')\nprint(json.dumps({line}))"
    found, _ = child(monkeypatch, tmp_path, words)
    assert found == [good("first")]


def test_the_folder_in_which_the_user_is_hides_no_library(monkeypatch, tmp_path):
    (tmp_path / "shlex.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    (found,) = make_check(NINJA, tmp_path, lambda told: None)
    assert found.level == "ok", found


def test_findings_before_a_crash_are_kept(monkeypatch, tmp_path):
    line = good("first", number=3).to_json()
    found, _ = child(monkeypatch, tmp_path, f"import json\nprint(json.dumps({line}))\nsys.exit(3)")
    assert found[0] == good("first", number=3)
    assert found[1].found == "ended with status 3"


def test_a_check_that_raises_in_this_process_is_a_fault(tmp_path):
    def raises(folder: Path):
        yield good("first")
        raise KeyError("unexpected")

    first, second = make_check(Check("toy", "nothing", raises), tmp_path, print)
    assert first == good("first")
    assert "could not be made: KeyError: 'unexpected'" in second.found


def test_a_child_prints_lines_of_json_and_libraries_print_elsewhere(tmp_path):
    (found,) = make_check(NINJA, tmp_path, lambda told: None)
    assert found.level == "ok" and "ninja" in found.found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_doctor_that_is_ended_ends_its_child_and_what_that_started(tmp_path, number):
    # A C++ compiler that does not come to its end.
    words = f"echo $$ > {tmp_path / 'pid'}; exec sleep 60"
    plant_program(tmp_path, "c++", words)
    doctor = subprocess.Popen(
        [sys.executable, "-S", str(ROOT / "doctor.py"), "--only", "compiler"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    for _ in range(400):
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip():
            break
        time.sleep(0.05)
    compiler = int((tmp_path / "pid").read_text())
    doctor.send_signal(number)
    _, errors = doctor.communicate(timeout=60)
    assert doctor.returncode == 128 + number and errors == b""
    for _ in range(200):
        if not is_running(compiler):
            break
        time.sleep(0.05)
    assert not is_running(compiler)
