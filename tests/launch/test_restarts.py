"""torchrun starts what has failed again, and not what was refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from rwkv_train.training.launchers import restarts
from tests.training.runs import start_cold

FIRST = {"TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_MAX_RESTARTS": "3", "LOCAL_RANK": "0"}


@pytest.mark.parametrize(
    ("status", "told", "parent", "ended"),
    [
        (2, {}, "python torchrun --max_restarts 3 train.py", True),
        (2, {"TORCHELASTIC_RESTART_COUNT": "2"}, "python -m torch.distributed.run train.py", True),
        (2, {"TORCHELASTIC_RESTART_COUNT": "3"}, "torchrun train.py", False),
        (2, {"TORCHELASTIC_RESTART_COUNT": ""}, "torchrun train.py", False),
        (2, {"TORCHELASTIC_MAX_RESTARTS": "abc"}, "torchrun train.py", False),
        (2, {"LOCAL_RANK": "1"}, "torchrun train.py", False),
        (2, {}, "bash run.sh", False),
        (1, {}, "torchrun train.py", False),
        (75, {}, "torchrun train.py", False),
        # SIGUSR1 is a scheduler's; SIGTERM may be torchrun's own, to start all with others.
        (138, {}, "torchrun train.py", True),
        (143, {}, "torchrun train.py", False),
        (0, {}, "torchrun train.py", False),
    ],
)
def test_the_first_of_a_machine_ends_the_agent_that_would_start_a_refusal_again(
    monkeypatch: pytest.MonkeyPatch, status: int, told: dict[str, str], parent: str, ended: bool
):
    sent = []
    monkeypatch.setattr(restarts, "_command", lambda process: parent)
    monkeypatch.setattr(restarts.os, "kill", lambda *words: sent.append(words))
    restarts.forbid_restart(status, {**FIRST, **told})
    assert [number for _, number in sent] == [signal.SIGTERM] * ended


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_agent_began_when_the_parent_of_a_process_did():
    assert restarts.supervised_since({}) is None
    found = restarts.supervised_since({"TORCHELASTIC_RUN_ID": "none"})
    asked = ("ps", "-o", "etimes=", "-p", str(os.getppid()))
    age = float(subprocess.run(asked, check=True, capture_output=True, text=True).stdout)
    # Both count whole seconds.
    assert found is not None and abs(time.time() - age - found) < 3.0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_torchrun_makes_one_attempt_at_a_wrong_flag():
    words = ("--nproc_per_node", "2", "--max_restarts", "3", "train.py", "--n_layr", "3")
    ended = start_cold("-m", "torch.distributed.run", *words)
    assert ended.returncode != 0
    assert ended.stderr.count("error: unknown flag --n_layr") == 1
    assert "RANK" not in ended.stderr.partition("error: ")[0]
