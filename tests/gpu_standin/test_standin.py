"""The stand-in finds what it is there to find, and its collectives pass on what they are given."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.gpu_standin import libraries
from tests.gpu_standin.standin_runs import Run, StepCounts, run_on


def called(folder: Path, case: str, *, card: str = "H100", ranks: int = 1) -> Run:
    """Runs one case of standin_calls.py in so many processes."""
    return run_on("tests.gpu_standin.standin_calls", case, folder=folder, cards=ranks, card=card)


@pytest.mark.parametrize(
    ("case", "fault"),
    [
        ("empty-grid", "an empty grid"),
        ("tall-grid", "too large a grid"),
        ("large-block", "too large a block"),
        ("deep-block", "too large a block"),
        ("shared-unasked", "more shared memory than asked for"),
    ],
)
def test_it_refuses_a_launch_that_a_card_refuses(tmp_path, case, fault):
    run = called(tmp_path, case)
    assert run.ended.returncode == 9, run.ended.stderr
    assert [line.rpartition(": ")[2] for line in run.faults] == [fault]


def test_it_takes_a_launch_that_a_card_takes(tmp_path):
    run = called(tmp_path, "right-launch")
    assert run.ended.returncode == 0, run.ended.stderr
    assert [line.split()[0] for log in run.logs for line in log] == ["launch"]


@pytest.mark.parametrize(("card", "fits"), [("H100", True), ("RTX3090", False), ("T4", False)])
def test_shared_memory_is_that_of_the_card(tmp_path, card, fits):
    run = called(tmp_path, "shared-107-kib", card=card)
    assert run.ended.returncode == (0 if fits else 1), run.ended.stderr
    assert len(run.faults) == (0 if fits else 1)


def test_it_says_what_it_lacks(tmp_path):
    run = called(tmp_path, "missing")
    assert run.ended.returncode == libraries.CUDA_NOT_SUPPORTED % 256
    assert run.faults == ["missing cublasZherk_v2"]


def test_it_counts_what_a_step_costs(tmp_path):
    run = called(tmp_path, "steps")
    assert run.ended.returncode == 0, run.ended.stderr
    assert run.step(0) == StepCounts(launches=1, copies=0, synchronisations=0)
    assert run.step(1) == StepCounts(launches=2, copies=1, synchronisations=3)


def test_a_slice_of_the_head_is_three_products_and_one_kernel(tmp_path):
    run = called(tmp_path, "head")
    assert run.ended.returncode == 0, run.ended.stderr
    # compilers that it starts are on the stand-in too
    (log,) = (log for log in run.logs if "mark head" in log)
    begin, middle, end = (log.index(f"mark {name}") for name in ("head", "backward", "end"))
    kinds = "rows_kernel|mean_kernel|GemmEx|$"
    forward = [re.search(kinds, line)[0] for line in log[begin + 1 : middle]]
    # logits in fp32; their gradient; that of x; that of the weight, added up by the product
    assert forward == [*3 * ["GemmEx", "rows_kernel", "GemmEx", "GemmEx"], "mean_kernel"]
    # 1, its quotient by the total, and two gradients times that
    assert [line.split()[0] for line in log[middle + 1 : end]] == 4 * ["launch"]


@pytest.mark.parametrize("case", ["collectives", "messages"])
def test_ranks_get_what_others_give(tmp_path, case):
    run = called(tmp_path, case, ranks=2)
    assert run.ended.returncode == 0, run.ended.stderr


@pytest.mark.parametrize("case", ["other-size", "other-type", "other-call", "other-reduction"])
def test_ranks_that_call_different_collectives_are_ended(tmp_path, case):
    run = called(tmp_path, case, ranks=2)
    assert run.ended.returncode == -6, run.ended.stderr
    assert run.ended.stderr.count("fault mismatch: rank") == 2
    assert [fault[:14] for fault in run.faults] == ["fault mismatch"] * 2


def test_a_forked_process_has_a_log_of_its_own(tmp_path):
    run = called(tmp_path, "fork")
    assert run.ended.returncode == 0, run.ended.stderr
    assert sorted(run.logs) == [["mark child"], ["mark parent"]]
