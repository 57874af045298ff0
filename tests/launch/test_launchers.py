"""Runs started by the variables of launchers train as their headers say, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launch.test_faults import error_lines
from tests.training.runs import loss_steps, ranks_environment, start, start_all

pytestmark = pytest.mark.slow

RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def of(names: dict[str, str]) -> list[dict[str, str]]:
    """The variables of two processes of one machine, `{rank}` being the rank of each."""
    made = []
    for rank, place in enumerate(ranks_environment(2)):
        # Other launchers do not set these.
        place = {name: value for name, value in place.items() if name not in RANKS}
        made.append(place | {name: text.format(rank=rank) for name, text in names.items()})
    return made


LAUNCHERS = {
    "srun": {
        **{"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"},
        **{"SLURM_PROCID": "{rank}", "SLURM_LOCALID": "{rank}", "SLURM_NODEID": "0"},
    },
    "Open MPI": {
        **{"OMPI_COMM_WORLD_RANK": "{rank}", "OMPI_COMM_WORLD_SIZE": "2"},
        **{"OMPI_COMM_WORLD_LOCAL_RANK": "{rank}", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
    },
    "mpiexec": {"PMI_RANK": "{rank}", "PMI_SIZE": "2", "MPI_LOCALRANKID": "{rank}"},
    "DeepSpeed's launcher": {
        **{"RANK": "{rank}", "WORLD_SIZE": "2", "LOCAL_RANK": "{rank}"},
        **{"CROSS_RANK": "0", "CROSS_SIZE": "1", "LOCAL_SIZE": "2"},
    },
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_of_a_launcher_train_without_devices(
    flags: Callable[..., list[str]], tmp_path: Path, launcher: str
):
    # DeepSpeed passes the local rank as an argument too.
    argument = "DeepSpeed" in launcher
    calls = [
        (flags(devices=None, micro_bsz=2, **({"local_rank": rank} if argument else {})), told)
        for rank, told in enumerate(of(LAUNCHERS[launcher]))
    ]
    statuses, out, err = start_all("train.py", calls)
    assert statuses == [0, 0], err
    assert f"processes   2, started by {launcher}\n" in out
    assert "4 samples (2 x 2) = 128 tokens a step" in out
    assert out.count("rwkv-final.pth") == 1
    assert loss_steps(tmp_path / "out") == list(range(12))


def test_a_process_trains_several_times_with_other_groups(
    flags: Callable[..., list[str]], tmp_path: Path
):
    given = flags(devices=2, micro_bsz=2, max_steps=2, proj_dir=None)
    words = ["ddp,deepspeed_stage_2,ddp", str(tmp_path / "run"), *given]
    ended = start("tests.launch.run_in_turn", *words, ranks=2)
    assert ended.returncode == 0, ended.stderr
    assert [loss_steps(tmp_path / f"run{number}") for number in range(3)] == [[0, 1]] * 3


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_flags_that_contradict_a_launcher_are_refused_once(
    flags: Callable[..., list[str]], tmp_path: Path, launcher: str
):
    calls = [(flags(devices=3, micro_bsz=2), told) for told in of(LAUNCHERS[launcher])]
    statuses, _, err = start_all("train.py", calls)
    assert statuses == [2, 2], err
    (line,) = error_lines(err)
    assert f"{launcher} started 2 process(es)" in line and "--devices 3" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("left_over", ["RANK=1", "RANK=abc", "NODE_RANK=1", "WORLD_SIZE=4"])
def test_left_over_variables_are_refused(
    flags: Callable[..., list[str]], tmp_path: Path, left_over: str
):
    name, _, value = left_over.partition("=")
    ended = start("train.py", *flags(), environment={name: value})
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ") and name in line and f"unset {name}" in line
    assert not (tmp_path / "out").exists()
