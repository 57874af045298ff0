"""Who this process is follows from variables and flags, or is refused in one line."""

from __future__ import annotations

from typing import Any

import pytest

from rwkv_train.training.launchers.decide import CHILD_VARIABLE, decide
from rwkv_train.training.launchers.launch import Launch
from rwkv_train.training.launchers.readers import first_host
from tests.launch.launcher_variables import (
    BATCH,
    DEEPSPEED,
    EACH_TWO,
    HYDRA,
    NODES,
    PLACE,
    mpi,
    task,
    torchrun,
)

# variables, --devices, --num_nodes; launcher, world, rank, local rank, machine, machines, starts
RIGHT: list[tuple[dict[str, str], int | None, int | None, tuple[Any, ...]]] = [
    ({}, None, None, ("this program", 1, 0, 0, 0, 1, False)),
    ({}, 2, None, ("this program", 2, 0, 0, 0, 1, True)),
    ({}, 2, 1, ("this program", 2, 0, 0, 0, 1, True)),
    ({"RANK": "", "WORLD_SIZE": " "}, 2, None, ("this program", 2, 0, 0, 0, 1, True)),
    ({"NODE_RANK": "0"}, 2, None, ("this program", 2, 0, 0, 0, 1, True)),
    (PLACE, 2, None, ("this program", 2, 0, 0, 0, 1, True)),
    ({**PLACE, "NODE_RANK": "1"}, 2, 3, ("this program", 6, 2, 0, 1, 3, True)),
    ({**PLACE, "GROUP_RANK": "2"}, 1, 3, ("this program", 3, 2, 0, 2, 3, False)),
    ({**PLACE, "LOCAL_RANK": "1"}, 2, None, ("LOCAL_RANK", 2, 1, 1, 0, 1, False)),
    (
        {**PLACE, "LOCAL_RANK": "1", "NODE_RANK": "1", "WORLD_SIZE": "4"},
        2,
        2,
        ("LOCAL_RANK", 4, 3, 1, 1, 2, False),
    ),
    (torchrun(1, 2, 1, 2), None, None, ("torchrun", 2, 1, 1, 0, 1, False)),
    (torchrun(1, 2, 1, 2), 2, 1, ("torchrun", 2, 1, 1, 0, 1, False)),
    (torchrun(3, 4, 1, 2), None, None, ("torchrun", 4, 3, 1, 1, 2, False)),
    (torchrun(3, 4, 1, 2), 2, 2, ("torchrun", 4, 3, 1, 1, 2, False)),
    (torchrun(0, 1, 0, 1), None, None, ("torchrun", 1, 0, 0, 0, 1, False)),
    # torchrun on each machine of a job, started by srun
    ({**task(1, 2, 0, 1), **torchrun(3, 4, 1, 2)}, 2, 2, ("torchrun", 4, 3, 1, 1, 2, False)),
    (DEEPSPEED, None, None, ("DeepSpeed's launcher", 4, 2, 0, 1, 2, False)),
    (DEEPSPEED, 2, 2, ("DeepSpeed's launcher", 4, 2, 0, 1, 2, False)),
    (
        {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"},
        None,
        None,
        ("RANK and WORLD_SIZE", 2, 1, 1, 0, 1, False),
    ),
    (
        {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **PLACE},
        None,
        2,
        ("RANK and WORLD_SIZE", 2, 1, 0, 1, 2, False),
    ),
    (task(1, 2, 1), None, None, ("srun", 2, 1, 1, 0, 1, False)),
    (task(1, 2, 1), 2, None, ("srun", 2, 1, 1, 0, 1, False)),
    (task(3, 4, 1, 1, **EACH_TWO), None, None, ("srun", 4, 3, 1, 1, 2, False)),
    # tasks dealt out in turn: the rank does not follow from machine and local rank
    (task(3, 4, 1, 1, **EACH_TWO), 2, 2, ("srun", 4, 3, 1, 1, 2, False)),
    (
        task(1, 2, 0, 1, **NODES),
        4,
        2,
        ("srun (one a machine) and this program", 8, 4, 0, 1, 2, True),
    ),
    (task(0, 1, 0), 2, None, ("this program", 2, 0, 0, 0, 1, True)),
    ({**BATCH, "SLURM_NTASKS": "1"}, 2, None, ("this program", 2, 0, 0, 0, 1, True)),
    ({**BATCH, "SLURM_NTASKS": "2"}, 2, None, ("this program", 2, 0, 0, 0, 1, True)),
    ({**BATCH, "SLURM_NTASKS": "2"}, None, None, ("this program", 1, 0, 0, 0, 1, False)),
    # the batch script and the shell of salloc have steps of their own in newer releases
    (
        {**BATCH, "SLURM_STEP_ID": "4294967291", "SLURM_NTASKS": "2"},
        2,
        None,
        ("this program", 2, 0, 0, 0, 1, True),
    ),
    (
        {
            **BATCH,
            "SLURM_STEP_ID": "4294967290",
            "SLURM_NTASKS": "2",
            "SLURM_JOB_NAME": "interactive",
        },
        2,
        None,
        ("this program", 2, 0, 0, 0, 1, True),
    ),
    # srun --pty bash
    (task(0, 1, 0, SLURM_PTY_PORT="40000"), 2, None, ("this program", 2, 0, 0, 0, 1, True)),
    (mpi(1, 2, 1, 2), None, None, ("Open MPI", 2, 1, 1, 0, 1, False)),
    (mpi(1, 2, 1, 2), 2, 1, ("Open MPI", 2, 1, 1, 0, 1, False)),
    (mpi(3, 4, 1, 2, **PLACE), None, None, ("Open MPI", 4, 3, 1, 1, 2, False)),
    # mpirun as a task of srun's
    ({**task(0, 1, 0), **mpi(1, 2, 1, 2)}, 2, None, ("Open MPI", 2, 1, 1, 0, 1, False)),
    # a script that copies them
    (
        {**mpi(1, 2, 1, 2), "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"},
        2,
        None,
        ("RANK and WORLD_SIZE", 2, 1, 1, 0, 1, False),
    ),
    (HYDRA, None, None, ("mpiexec", 2, 1, 1, 0, 1, False)),
    ({"PMI_RANK": "1", "PMI_SIZE": "2"}, 2, None, ("PMI", 2, 1, 1, 0, 1, False)),
    (
        {
            **{"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2"},
            **{"MV2_COMM_WORLD_LOCAL_RANK": "1", "MV2_COMM_WORLD_LOCAL_SIZE": "2"},
        },
        None,
        None,
        ("MVAPICH", 2, 1, 1, 0, 1, False),
    ),
    (
        {
            **{"JSM_NAMESPACE_RANK": "1", "JSM_NAMESPACE_SIZE": "2"},
            **{"JSM_NAMESPACE_LOCAL_RANK": "1", "JSM_NAMESPACE_LOCAL_SIZE": "2"},
        },
        None,
        None,
        ("jsrun", 2, 1, 1, 0, 1, False),
    ),
]


@pytest.mark.parametrize(("variables", "devices", "num_nodes", "expected"), RIGHT)
def test_the_decision_is_the_launchers_or_our_own(
    variables: dict[str, str], devices: int | None, num_nodes: int | None, expected: tuple[Any, ...]
):
    found = decide(variables, devices, num_nodes)
    assert expected == (
        found.launcher,
        found.world_size,
        found.rank,
        found.local_rank,
        found.node_rank,
        found.num_nodes,
        found.starts_children,
    )


def test_all_tasks_of_a_job_work_out_one_place_to_meet():
    tasks = [task(rank, 4, rank % 2, rank // 2, **EACH_TWO) for rank in range(4)]
    (place,) = {(found.main_address, found.main_port) for found in (decide(t, 2, 2) for t in tasks)}
    assert place[0] == "gpu07"
    other = decide({**tasks[0], "SLURM_JOB_ID": "78"}, 2, 2)
    assert other.main_port != place[1]
    assert decide({**tasks[0], **PLACE}, 2, 2).main_address == "one"


def test_a_number_that_may_be_the_rank_is_not_taken_for_the_jobs():
    ports = set()
    for rank in ("0", "1"):
        told = {"PMI_RANK": rank, "PMI_SIZE": "2", "MPI_LOCALRANKID": rank, "PMI_ID": rank}
        ports.add(decide(told, None, None).main_port)
    assert len(ports) == 1


def test_processes_of_open_mpi_meet_where_no_other_job_does():
    jobs = [decide(mpi(0, 2, 0, 2, PMIX_NAMESPACE=name), 2, 1) for name in ("a", "a", "b")]
    assert jobs[0].main_port == jobs[1].main_port != jobs[2].main_port


@pytest.mark.parametrize(
    ("names", "first"),
    [
        ("gpu1", "gpu1"),
        ("gpu1,gpu2", "gpu1"),
        ("gpu[07-09,12]", "gpu07"),
        ("gpu[7,9]-ib,other", "gpu7-ib"),
        ("rack2-gpu[001-016].cluster", "rack2-gpu001.cluster"),
    ],
)
def test_the_first_machine_of_slurms_list_is_the_place_to_meet(names: str, first: str):
    assert first_host(names) == first


def test_a_step_that_is_no_number_is_still_a_step():
    assert decide(task(0, 2, 0, SLURM_STEP_ID="²"), None, None).launcher == "srun"


def test_torchruns_restart_and_its_own_store_are_known():
    found = decide(torchrun(0, 2, 0, 2, TORCHELASTIC_RESTART_COUNT="3"), None, None)
    assert (found.attempt, found.agent_store) == (3, True)
    # Of two machines the one whose worker failed has counted it, and they have to meet again.
    own = {"TORCHELASTIC_USE_AGENT_STORE": "False"}
    found = decide(torchrun(0, 2, 0, 2, **own, TORCHELASTIC_RESTART_COUNT="3"), None, None)
    assert (found.attempt, found.agent_store) == (0, False)


def test_what_is_ignored_is_told():
    (note,) = decide({**BATCH, "SLURM_NTASKS": "2"}, 2, None).notes
    assert "SLURM_NTASKS=2" in note and "srun did not start this process" in note
    (note,) = decide(task(0, 1, 0, SLURM_JOB_ID="", SLURM_NTASKS=""), 2, None).notes
    assert "srun started one process" in note
    (note,) = decide(PLACE, 2, None).notes
    assert "MASTER_ADDR is ignored" in note
    assert decide({}, 2, None).notes == ()


def test_devices_are_counted_only_where_nobody_says_how_many():
    assert decide({}, None, None, lambda: 8).world_size == 8
    assert decide({}, 2, None, lambda: 8).world_size == 2
    assert decide(torchrun(0, 2, 0, 2), None, None, lambda: 8).world_size == 2


def test_a_child_is_what_its_parent_told_it():
    told = Launch("this program", world_size=2, rank=1, local_rank=1, local_size=2, notes=("a",))
    assert decide({CHILD_VARIABLE: told.to_json(), "RANK": "7"}, 2, None) == told


def test_the_header_tells_the_decision():
    assert decide({}, None, None).describe() == "1"
    assert decide({}, 2, None).describe() == "2, started by this program"
    told = decide(torchrun(3, 4, 1, 2), None, None).describe()
    assert told == "4, started by torchrun: 2 machines with 2 each, which meet at one:4000"
