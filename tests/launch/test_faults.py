"""Whatever ends one rank ends all of them, soon, with one status and one line."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from rwkv_train.checkpoint.resume import load_state
from tests.training.runs import loss_steps, ranks_environment, start, start_all

pytestmark = pytest.mark.slow

TWO = {"devices": 2, "micro_bsz": 2, "strategy": "ddp"}
# Of a batch script without srun, in which nobody has started a second process.
BATCH = {
    **{"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"},
    **{"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"},
}


def error_lines(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("error: ")]


def test_a_killed_child_of_a_batch_script_ends_the_run_with_a_line_that_names_it(
    flags: Callable[..., list[str]], tmp_path: Path
):
    ended = start("tests.training.kill_at", "step:4", "KILL@1", *flags(**TWO), environment=BATCH)
    assert ended.returncode == 1, ended.stderr
    assert "processes   2, started by this program\n" in ended.stdout
    assert "SLURM_NTASKS=2" in ended.stdout
    (line,) = error_lines(ended.stderr)
    assert line.startswith("error: rank 1 on ") and "killed by signal 9 (SIGKILL" in line
    assert "Traceback" not in ended.stderr
    assert len(loss_steps(tmp_path / "out")) in (3, 4)
    assert not (tmp_path / "out" / "run.lock").exists()


def test_a_parent_that_is_killed_takes_its_children(
    flags: Callable[..., list[str]], tmp_path: Path
):
    # The streams that `start` reads to their end are the children's too.
    ended = start("tests.training.kill_at", "step:4", "KILL@0", *flags(**TWO))
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert error_lines(ended.stderr) == []


def test_a_rank_zero_that_is_killed_is_missed_by_the_other(flags: Callable[..., list[str]]):
    calls = [(["step:4", "KILL@0", *flags(**TWO)], told) for told in ranks_environment(2)]
    statuses, _, err = start_all("tests.training.kill_at", calls)
    assert statuses == [-signal.SIGKILL, 1], err
    (line,) = error_lines(err)
    assert line.startswith("error: rank 0 does not answer any more: it was killed")
    assert "Traceback" not in err


@pytest.mark.parametrize("ranks", [1, 2], ids=["own start", "started by a launcher"])
def test_a_rank_that_raises_lets_rank_zero_finish_its_save(
    flags: Callable[..., list[str]], tmp_path: Path, ranks: int
):
    ended = start("tests.training.kill_at", "saving:6", "RAISE@1", *flags(**TWO), ranks=ranks)
    assert ended.returncode == 1, ended.stderr
    (line,) = error_lines(ended.stderr)
    assert line.startswith("error: rank 1 on ") and line.endswith(
        ": ZeroDivisionError: by the test"
    )
    # Its own traceback, and not that of the connection which the other one lost.
    assert ended.stderr.count("Traceback") == 1
    out = tmp_path / "out"
    assert "states at the strike: []" in ended.stdout
    assert load_state(out / "rwkv-0.state")["step"] == 5
    assert not list(out.glob("*.partial")) and not (out / "run.lock").exists()


def test_rank_zero_that_raises_takes_the_other_along(flags: Callable[..., list[str]]):
    calls = [
        (["step:4", "RAISE@0", *flags(**TWO)], environment) for environment in ranks_environment(2)
    ]
    statuses, _, err = start_all("tests.training.kill_at", calls)
    assert statuses == [1, 1], err
    assert error_lines(err) == ["error: ZeroDivisionError: by the test"]


def test_a_refusal_on_one_rank_is_the_refusal_of_all(
    flags: Callable[..., list[str]], tmp_path: Path
):
    first, second = ranks_environment(2)
    calls = [(flags(**TWO), first), (flags(**TWO, data_file=tmp_path / "nowhere"), second)]
    statuses, out, err = start_all("train.py", calls)
    assert statuses == [2, 2], err
    (line,) = error_lines(err)
    assert line.startswith("error: rank 1 on ") and "nowhere" in line
    assert "RWKV-6" not in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", [{"n_layr": 3}, {"devices": 3}], ids=str)
def test_a_wrong_flag_of_one_rank_is_told_to_the_other(
    flags: Callable[..., list[str]], tmp_path: Path, wrong: dict[str, int]
):
    first, second = ranks_environment(2)
    calls = [(flags(**TWO), first), (flags(**{**TWO, **wrong}), second)]
    statuses, _, err = start_all("train.py", calls)
    assert statuses == [2, 2], err
    (line,) = error_lines(err)
    assert line.startswith("error: rank 1 on ")
    assert not (tmp_path / "out").exists()


def test_a_flag_that_is_wrong_everywhere_is_told_once(flags: Callable[..., list[str]]):
    statuses, _, err = start_all(
        "train.py", [(flags(**TWO, n_layr=3), each) for each in ranks_environment(2)]
    )
    assert statuses == [2, 2]
    # A rank may have to wait a while for the first one, which it says.
    told = [line for line in err.splitlines() if not line.startswith("waiting for rank 0 at ")]
    assert told == ["error: unknown flag --n_layr; perhaps you meant --n_layer"]


def test_a_refusal_is_kept_for_a_rank_that_comes_late(flags: Callable[..., list[str]]):
    calls = [
        ([seconds, *flags(**TWO, n_layr=3)], each)
        for seconds, each in zip(("0", "3"), ranks_environment(2))
    ]
    statuses, _, err = start_all("tests.launch.come_late", calls)
    assert statuses == [2, 2], err
    assert len(error_lines(err)) == 1


def test_a_rank_that_is_refused_alone_leaves_with_its_own_reason(flags: Callable[..., list[str]]):
    second = ranks_environment(2)[1]
    calls = [(flags(**TWO, n_layr=3, dist_timeout=1), second)]
    statuses, _, err = start_all("train.py", calls)
    assert statuses == [2]
    assert error_lines(err) == ["error: unknown flag --n_layr; perhaps you meant --n_layer"]


def test_a_rank_that_nobody_starts_is_waited_for_aloud_and_not_for_long(
    flags: Callable[..., list[str]], tmp_path: Path
):
    first, second = ranks_environment(2)
    statuses, _, err = start_all("train.py", [(flags(**TWO, dist_timeout=3), first)])
    assert statuses == [1]
    waiting, line = err.splitlines()
    assert waiting == "waiting for rank 1 of 2 ..."
    assert line.startswith("error: rank 1 of 2 did not start within 3 s")
    assert not (tmp_path / "out").exists()
    statuses, _, err = start_all("train.py", [(flags(**TWO, dist_timeout=3), second)])
    assert statuses == [1]
    place = f"{second['MASTER_ADDR']}:{second['MASTER_PORT']}"
    waiting, line = err.splitlines()
    assert waiting == f"waiting for rank 0 at {place} ..."
    assert line.startswith(f"error: rank 0 did not answer at {place} for 3 s")


def test_two_processes_of_one_rank_are_refused(flags: Callable[..., list[str]], tmp_path: Path):
    first, second, _ = ranks_environment(3)
    calls = [(flags(**{**TWO, "devices": 3}), rank) for rank in (first, second, second)]
    statuses, _, err = start_all("train.py", calls)
    assert statuses == [2, 2, 2], err
    (line,) = error_lines(err)
    assert "another process is rank 1 of 3" in line
    assert not (tmp_path / "out").exists()
