"""Runs in which one process hangs leave soon with its name, and go on when started again."""

from __future__ import annotations

import itertools
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from rwkv_train.report.run_records import read_metrics
from rwkv_train.training.launchers.exit_statuses import HUNG, may_start_again
from rwkv_train.training.start.lock_owner import is_alive
from tests.launch.test_faults import TWO, error_lines
from tests.training.runs import (
    assert_same_weights,
    loss_steps,
    ranks_environment,
    start,
    start_all,
    start_cold,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and filters sockets"),
]

# The shortest there is; mini-epochs of 5 steps are saved.
HANGS = {**TWO, "hang_timeout": 5}
STEP = "8"


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The final weights of a run that nothing has held up."""
    return tmp_path_factory.mktemp("undisturbed") / "out"


def assert_healed(flags: Callable[..., list[str]], folder: Path, undisturbed: Path) -> None:
    """Starts the same command again, which ends with the bits of an undisturbed run."""
    if not undisturbed.exists():
        whole = start("train.py", *flags(**HANGS, proj_dir=undisturbed), ranks=2)
        assert whole.returncode == 0, whole.stderr
    again = start("train.py", *flags(**HANGS), ranks=2)
    assert again.returncode == 0, again.stderr
    assert "exact continuation at step 5" in again.stdout
    assert loss_steps(folder) == list(range(12))
    assert_same_weights(folder / "rwkv-final.pth", undisturbed / "rwkv-final.pth")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("LOADER@1", ("error: rank 1 on ", "stands still in data after step 8", "read_for_ever")),
        ("DEAF@1", ("all 2 ranks wait for each other after step 8", "gets no answer from ")),
    ],
)
def test_a_hang_is_named_with_its_stack_and_healed(
    flags: Callable[..., list[str]],
    tmp_path: Path,
    undisturbed: Path,
    kind: str,
    words: tuple[str, ...],
):
    calls = [([STEP, kind, *flags(**HANGS)], told) for told in ranks_environment(2)]
    statuses, _, err = start_all("tests.launch.hang_at", calls)
    assert statuses == [HUNG, HUNG] and may_start_again(HUNG), err
    (line,) = error_lines(err)
    for word in words:
        assert word in line
    assert "stack of rank 1 on " in err and "in run_module" in err
    assert_healed(flags, tmp_path / "out", undisturbed)


def test_a_loader_process_that_hangs_does_not_outlive_the_run(flags: Callable[..., list[str]]):
    calls = [
        ([STEP, "WORKER@1", *flags(**HANGS, num_workers=1)], told) for told in ranks_environment(2)
    ]
    statuses, out, err = start_all("tests.launch.hang_at", calls)
    assert statuses == [HUNG, HUNG], err
    (line,) = error_lines(err)
    assert line.startswith("error: rank 1 on ") and "stands still in data after step " in line
    worker = int(out.partition("reads for ever: ")[2].split()[0])
    # It reads without looking whether anybody waits for it; the system ends it, but not at once.
    for _ in range(200):
        if is_alive(worker):
            time.sleep(0.1)
    try:
        assert not is_alive(worker)
    finally:
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)


def test_a_slow_rank_is_named_once(flags: Callable[..., list[str]], tmp_path: Path):
    given = flags(**TWO, exit_tokens=60 * 4 * 32)
    calls = [(["0", "SLOW@1", *given], told) for told in ranks_environment(2)]
    statuses, out, err = start_all("tests.launch.hang_at", calls)
    assert statuses == [0, 0], err
    # A busy machine may make the other one slow for a while, or neither: that is news, and so is
    # rank 1 after it; the same is never told twice in turn.
    records = [record for record in read_metrics(tmp_path / "out") if "slow" in record]
    news = [[re.sub(r"\d+\.\d+ s", "", line) for line in record["slow"]] for record in records]
    assert any(": rank 1, " in line for lines in news for line in lines), out
    assert all(one != other for one, other in itertools.pairwise(news))
    warned = [line for line in out.splitlines() if line.startswith("WARNING: ")]
    assert all(re.search(r"after step \d+: \S+ is slow: rank \d, \d+\.\d+ s", w) for w in warned)
    told = [line for record in records for line in record["slow"]]
    assert [line.split(": ", 2)[2] for line in warned] == told
    assert all(record["tokens"] > 0 for record in records)


def test_a_stopped_process_is_named_as_one_and_ended(
    flags: Callable[..., list[str]], tmp_path: Path, undisturbed: Path
):
    # Rank 0 has started the other one, and ends it.
    ended = start("tests.launch.hang_at", STEP, "STOP@1", *flags(**HANGS))
    assert ended.returncode == HUNG, ended.stderr
    (line,) = error_lines(ended.stderr)
    assert line.startswith("error: rank 1 on ") and "stands still in training after step 7" in line
    assert "gives no sign of life: the process is stopped (SIGSTOP)" in line
    assert_healed(flags, tmp_path / "out", undisturbed)


def test_a_process_that_keeps_pythons_lock_shows_its_stack_and_leaves(
    flags: Callable[..., list[str]],
):
    calls = [([STEP, "HELD@1", *flags(**HANGS)], told) for told in ranks_environment(2)]
    statuses, _, err = start_all("tests.launch.hang_at", calls)
    assert statuses == [HUNG, 1], err
    (line,) = error_lines(err)
    assert "rank 1 on " in line and "gives no sign of life" in line
    assert "in hold_the_lock" in err


def test_a_process_alone_leaves_when_its_data_never_come(
    flags: Callable[..., list[str]], tmp_path: Path
):
    ended = start("tests.launch.hang_at", STEP, "LOADER@0", *flags(hang_timeout=5))
    assert ended.returncode == HUNG, ended.stderr
    (line,) = error_lines(ended.stderr)
    assert line.startswith("error: the process stands still in data after step 8 for ")
    assert "read_for_ever" in line
    assert not (tmp_path / "out" / "run.lock").exists()


def test_torchrun_starts_a_hung_run_again_which_ends_by_itself(
    flags: Callable[..., list[str]], tmp_path: Path
):
    agent = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--max_restarts", "1")
    given = flags(micro_bsz=2, strategy="ddp", devices=None, hang_timeout=5)
    # It holds the store itself, which goes on while rank 0 is stopped.
    ended = start_cold(*agent, "-m", "tests.launch.hang_at", STEP, "STOP@0", *given)
    assert ended.returncode == 0, ended.stderr
    assert "the process is stopped (SIGSTOP)" in ended.stderr
    assert loss_steps(tmp_path / "out") == list(range(12))
