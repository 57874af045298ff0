"""Processes that the program starts itself are copies of it, and end with it."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

from rwkv_train.errors import ConfigError
from rwkv_train.training.environment import child_variables
from rwkv_train.training.launchers.children import Children, EndedChild, own_command
from rwkv_train.training.launchers.given_flags import given_number, without_local_rank

FLAGS = ["--devices", "2"]


def started_as(monkeypatch: pytest.MonkeyPatch, argv: list[str], module: str | None = None) -> None:
    spec = None if module is None else SimpleNamespace(name=module)
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=spec))


def test_a_script_is_started_by_its_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    script = tmp_path / "train.py"
    script.touch()
    started_as(monkeypatch, [str(script), *FLAGS])
    assert own_command(FLAGS) == [sys.executable, str(script), *FLAGS]


def test_a_module_is_started_as_one(monkeypatch: pytest.MonkeyPatch):
    started_as(monkeypatch, ["/anywhere/__main__.py", *FLAGS], "rwkv_train.training.__main__")
    expected = [sys.executable, "-m", "rwkv_train.training.__main__", *FLAGS]
    assert own_command(FLAGS) == expected


def test_a_program_around_it_keeps_its_own_arguments(monkeypatch: pytest.MonkeyPatch):
    started_as(monkeypatch, ["kill_at.py", "step:4", "KILL", *FLAGS], "tests.training.kill_at")
    assert own_command(FLAGS)[2:] == ["tests.training.kill_at", "step:4", "KILL", *FLAGS]


@pytest.mark.parametrize("argv", [["-c"], ["notebook.py", "--other", "1"], [""]])
def test_a_program_that_calls_it_is_not_started_again(
    monkeypatch: pytest.MonkeyPatch, argv: list[str]
):
    started_as(monkeypatch, argv)
    assert own_command(FLAGS) == [sys.executable, "-m", "rwkv_train.training", *FLAGS]


def test_a_child_finds_the_package_as_its_parent_did(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    told = child_variables({"RANK": "1"})
    assert told["RANK"] == "1" and told["PYTHONPATH"].startswith("/elsewhere")
    program = "import sys; sys.path.pop(0); import rwkv_train; print(rwkv_train.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=told,
        capture_output=True,
        text=True,
        cwd="/",
        check=True,
    )
    assert "rwkv_train" in done.stdout


def test_how_children_end_is_told_once():
    program = "import os, sys; os.kill(os.getpid(), 9) if sys.argv[1] == 'k' else sys.exit(3)"
    children = Children([sys.executable, "-S", "-c", program, "k"], {1: {}, 2: {}})
    found: list[EndedChild] = []
    while len(found) < 2:
        found += children.take_failed()
    assert sorted(found) == [(1, -signal.SIGKILL), (2, -signal.SIGKILL)]
    assert children.take_failed() == []
    assert "killed by signal 9 (SIGKILL; often the machine was out of memory" in found[0].describe()
    assert EndedChild(1, 3).describe() == "ended with status 3 before the others"
    assert EndedChild(1, -11).describe() == "killed by signal 11 (SIGSEGV)"


def test_children_that_do_not_end_are_killed():
    children = Children([sys.executable, "-S", "-c", "import time; time.sleep(600)"], {1: {}})
    children.wait(0.1)
    assert children.take_failed() == []


@pytest.mark.skipif(sys.platform != "linux", reason="the system call is Linux's")
def test_a_child_dies_with_its_parent():
    child = """
        import os, sys, time
        from rwkv_train.training.launchers.children import die_with_parent
        die_with_parent(os.getppid())
        print("lives", flush=True)
        time.sleep(600)
    """
    parent = f"""
        import subprocess, sys
        child = [sys.executable, "-c", {textwrap.dedent(child)!r}]
        running = subprocess.Popen(child, stdout=subprocess.PIPE)
        running.stdout.readline()
        print("started", flush=True)
    """
    # Its end is not waited for: the pipe closes once the child is gone too.
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(parent)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout == "started\n"


def test_the_argument_of_deepspeeds_launcher_is_taken():
    told = {"LOCAL_RANK": "1"}
    for argv in (
        ["--local_rank=1", *FLAGS],
        [*FLAGS, "--local_rank", "1"],
        ["--local-rank=1", *FLAGS],
    ):
        assert without_local_rank(argv, told) == FLAGS
    assert without_local_rank(FLAGS, {}) == FLAGS


@pytest.mark.parametrize("told", [{}, {"LOCAL_RANK": "1"}])
def test_the_argument_alone_is_refused(told: dict[str, str]):
    with pytest.raises(ConfigError, match="--local_rank 0"):
        without_local_rank(["--local_rank=0"], told)


def test_numbers_are_found_among_wrong_flags():
    argv = [
        "--n_layr",
        "3",
        "--devices",
        "2",
        "--num-nodes=4",
        "--micro_bsz",
        "x",
        "--ctx_len",
        "²",
    ]
    assert given_number(argv, "devices") == 2
    assert given_number(argv, "num_nodes") == 4
    assert given_number(argv, "micro_bsz") is None
    assert given_number(argv, "ctx_len") is None
