"""A process that starts warm is a process like any other, and knows nothing of the one before."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.checkout import ROOT
from tests.training.runs import start

PROGRAM = """
import os, signal, sys
import torch
from rwkv_train.training import run
print(__name__, *sys.argv[1:], os.environ.get("COLOUR"), os.environ.get("LOCAL_RANK"))
print(os.getcwd(), os.getsid(0) == os.getpid(), hasattr(run, "trace"), file=sys.stderr)
assert sys.stdin.read() == ""
run.trace = True
if sys.argv[1] == "strike":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("status", [0, 3])
def test_it_has_arguments_environment_streams_and_a_status_of_its_own(program: str, status: int):
    ended = start(program, str(status), "two words", environment={"COLOUR": "red"})
    assert ended.stdout == f"__main__ {status} two words red None\n"
    assert ended.stderr == f"{ROOT} True False\n"
    assert ended.returncode == status
    assert "COLOUR" not in os.environ


def test_a_signal_ends_it_alone(program: str):
    assert start(program, "strike").returncode == -signal.SIGKILL
    assert start(program, "0").returncode == 0


def test_ranks_are_told_apart_and_the_first_bad_status_counts(program: str):
    ended = start(program, "4", ranks=2)
    assert sorted(line.split()[-1] for line in ended.stdout.splitlines()) == ["0", "1"]
    assert ended.returncode == 4


def test_an_exception_is_a_traceback_and_status_1(tmp_path: Path):
    path = tmp_path / "fails.py"
    path.write_text("def inner():\n    raise ValueError('seen')\n\ninner()\n", encoding="utf-8")
    ended = start(str(path))
    assert ended.returncode == 1 and ended.stderr.endswith("ValueError: seen\n")


LATER = """
import sys
print(*(name for name in ("torchmetrics", "transformers", "scipy.signal") if name in sys.modules))
from lightning_utilities.core.imports import RequirementCache, package_available
import scipy.signal
print(package_available("scipy"), bool(RequirementCache("scipy>=1")))
"""


def test_the_libraries_of_metrics_that_no_run_computes_are_not_imported(tmp_path: Path):
    pytest.importorskip("scipy")
    path = tmp_path / "later.py"
    path.write_text(LATER, encoding="utf-8")
    ended = start(str(path))
    assert ended.stdout.splitlines() == ["torchmetrics", "True True"], ended.stderr
