"""A global batch is split over the processes that there are, or refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from rwkv_train.config.discovered import Discovered, StartDiscovered, StateDiscovered
from rwkv_train.config.load import dump_config, load_config
from rwkv_train.config.resolve.resolve import for_saving
from rwkv_train.config.run_length import global_batch
from tests.config.resolving import MINIPILE, config_of, fault, resolved

CPU = "--accelerator cpu --strategy ddp "


def split(line: str, discovered: Discovered = MINIPILE) -> tuple[int, int, int]:
    """Samples a step, of a micro batch, and micro batches a step."""
    config, _ = resolved(CPU + line, discovered)
    train = config.train
    return global_batch(config), train.micro_bsz, train.accumulate_grad_batches


def resumed(keeps_batch: bool = True, batch: int | None = 24, **before: Any) -> Discovered:
    """A state of 3 processes that read 24 samples a step, unless told otherwise."""
    values = {"devices": 3, "num_nodes": 1, "micro_bsz": 8, **before}
    state = StateDiscovered(config=values, batch_samples=batch)
    start = StartDiscovered("out/rwkv-3.state", 3, state=state)
    return dataclasses.replace(MINIPILE, start=start, keeps_batch=keeps_batch)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--global_batch_size 64 --micro_bsz 8 --devices 2", (64, 8, 4)),
        ("--global_batch_size 64 --micro_bsz 8 --devices 4 --num_nodes 2", (64, 8, 1)),
        # The micro batch is the most of a pass: the largest divisor of a process's share.
        ("--global_batch_size 24 --micro_bsz 5 --devices 2", (24, 4, 3)),
        ("--global_batch_size 14 --micro_bsz 6 --devices 2", (14, 1, 7)),
        ("--global_batch_size 3 --micro_bsz 8 --devices 3", (3, 1, 1)),
        # What fits may be said twice.
        (
            "--global_batch_size 12 --micro_bsz 2 --accumulate_grad_batches 3 --devices 2",
            (12, 2, 3),
        ),
        ("--micro_bsz 2 --accumulate_grad_batches 3 --devices 2", (12, 2, 3)),
    ],
)
def test_a_batch_is_split_into_the_largest_micro_batches(line: str, expected: tuple[int, int, int]):
    assert split(line) == expected


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "--global_batch_size 8 --devices 3",
            ("--global_batch_size 8", "by 3 processes", "start 1 or 2 or 4 or 8", "6 or 9"),
        ),
        ("--global_batch_size 2 --devices 5", ("start 1 or 2 of", "--global_batch_size 5")),
        (
            "--global_batch_size 12 --micro_bsz 2 --accumulate_grad_batches 2 --devices 2",
            ("--global_batch_size 12 contradicts", "read 8 samples", "leave --accumulate"),
        ),
        ("--global_batch_size 0", ("--global_batch_size 0: must be at least 1",)),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused(line: str, words: tuple[str, ...]):
    for word in words:
        assert word in fault(CPU + line)


@pytest.mark.parametrize(
    ("line", "discovered", "expected"),
    [
        # Of three processes two, one, and four are left.
        ("--micro_bsz 8 --devices 2", resumed(), (24, 6, 2)),
        ("--micro_bsz 8 --devices 1", resumed(), (24, 8, 3)),
        ("--micro_bsz 8 --devices 4", resumed(), (24, 6, 1)),
        # Started again with the same: the flags count.
        ("--micro_bsz 4 --devices 3", resumed(), (12, 4, 1)),
        # But once kept it stays: the flags are still those of the first start.
        ("--micro_bsz 8 --devices 1", resumed(devices=1, global_batch_size=24), (24, 8, 3)),
        ("--micro_bsz 8 --devices 3", resumed(devices=1, global_batch_size=24), (24, 8, 1)),
        # The flag is another decision.
        ("--global_batch_size 8 --devices 2", resumed(), (8, 4, 1)),
        # Without torchrun, and for a state that does not tell, the flags count.
        ("--micro_bsz 8 --devices 2", resumed(keeps_batch=False), (16, 8, 1)),
        ("--micro_bsz 8 --devices 2", resumed(batch=None), (16, 8, 1)),
    ],
)
def test_a_run_that_is_started_with_other_processes_keeps_its_batch(
    line: str, discovered: Discovered, expected: tuple[int, int, int]
):
    assert split(line, discovered) == expected


def test_a_kept_batch_is_said_and_refused_like_a_given_one():
    _, lines = resolved(CPU + "--micro_bsz 8 --devices 2", resumed())
    assert (
        "global_batch_size 24: 2 x micro_bsz 6 x 2 accumulated, the batch of the state that is"
        " resumed, kept for other processes"
    ) in lines
    line = fault(CPU + "--micro_bsz 8 --devices 5", resumed())
    assert "the batch of 24 samples of the run that is resumed cannot be shared by 5" in line
    assert "start 3 or 4 or 6 or 8 of them, or give --global_batch_size 20 or 25" in line


def test_groups_that_share_samples_are_counted_and_not_their_processes():
    shared = "--micro_bsz 8 --context_parallel 2 "
    # Three machines of two processes, then two: 24 samples by 3 groups, by 2.
    assert split(shared + "--global_batch_size 24 --devices 2 --num_nodes 3") == (24, 8, 1)
    assert split(shared + "--global_batch_size 24 --devices 2 --num_nodes 2") == (24, 6, 2)
    before = resumed(devices=2, num_nodes=3, context_parallel=2)
    assert split(shared + "--devices 2 --num_nodes 2", before) == (24, 6, 2)
    _, lines = resolved(CPU + shared + "--devices 2 --num_nodes 2", before)
    assert any(
        "24: 2 groups of 2 processes x micro_bsz 6 x 2 accumulated" in line for line in lines
    )
    # Five groups of two: of processes 6, 8, 12 or 16.
    line = fault(CPU + shared + "--global_batch_size 24 --devices 10")
    assert "cannot be shared by 5 groups of 2 processes; start 6 or 8 or 12 or 16 processes" in line
    assert "--global_batch_size 20 or 25" in line


def test_the_saved_configuration_leaves_the_split_to_other_processes(tmp_path: Any):
    given = config_of(CPU + "--global_batch_size 24 --micro_bsz 8 --devices 4")
    config, _ = resolved(CPU + "--global_batch_size 24 --micro_bsz 8 --devices 4")
    assert (config.train.micro_bsz, config.train.accumulate_grad_batches) == (6, 1)
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(for_saving(config, given)))
    train = load_config(["--config", str(file)]).train
    assert (train.global_batch_size, train.micro_bsz, train.accumulate_grad_batches) == (24, 8, 1)
