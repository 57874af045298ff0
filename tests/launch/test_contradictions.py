"""Variables and flags that contradict one another are refused in one line."""

from __future__ import annotations

import pytest

from rwkv_train.errors import ConfigError
from rwkv_train.training.launchers.decide import decide
from tests.launch.launcher_variables import DEEPSPEED, HYDRA, NODES, PLACE, mpi, task, torchrun

# variables, --devices, --num_nodes, words of the line
WRONG: list[tuple[dict[str, str], int | None, int | None, tuple[str, ...]]] = [
    ({"RANK": "1"}, None, None, ("RANK=1", "without WORLD_SIZE and LOCAL_RANK", "unset RANK")),
    ({"WORLD_SIZE": "4"}, None, None, ("WORLD_SIZE=4", "unset WORLD_SIZE")),
    ({"LOCAL_RANK": "0"}, None, None, ("LOCAL_RANK=0", "unset LOCAL_RANK")),
    ({"LOCAL_RANK": "1"}, 2, None, ("LOCAL_RANK=1", "unset LOCAL_RANK")),
    ({"LOCAL_RANK": "0", **PLACE}, 1, None, ("LOCAL_RANK=0", "unset LOCAL_RANK")),
    ({"RANK": "0", "WORLD_SIZE": "2"}, 2, None, ("without LOCAL_RANK", "set LOCAL_RANK too")),
    ({"RANK": "abc"}, None, None, ("RANK='abc'", "not a whole number", "unset RANK")),
    ({"RANK": "-1"}, None, None, ("RANK='-1'", "unset RANK")),
    ({"LOCAL_RANK": "1.0"}, None, None, ("LOCAL_RANK='1.0'",)),
    ({"NODE_RANK": "1"}, None, None, ("NODE_RANK=1", "--num_nodes", "unset NODE_RANK")),
    ({"GROUP_RANK": "1"}, 2, 1, ("GROUP_RANK=1", "unset GROUP_RANK")),
    ({"NODE_RANK": "x"}, None, None, ("NODE_RANK='x'",)),
    ({"NODE_RANK": "1", "GROUP_RANK": "0", **PLACE}, 1, 2, ("NODE_RANK=1", "GROUP_RANK=0")),
    ({}, 1, 2, ("MASTER_ADDR", "set it on all")),
    (PLACE, 1, 2, ("--num_nodes 2 needs NODE_RANK", "srun, torchrun or mpirun")),
    ({**PLACE, "NODE_RANK": "2"}, 1, 2, ("NODE_RANK is 2", "0 to 1")),
    ({**PLACE, "MASTER_PORT": "70000", "NODE_RANK": "0"}, 1, 2, ("MASTER_PORT=70000", "65535")),
    ({**PLACE, "MASTER_PORT": "0", "NODE_RANK": "0"}, 1, 2, ("MASTER_PORT=0",)),
    ({**PLACE, "MASTER_PORT": "http", "NODE_RANK": "0"}, 1, 2, ("MASTER_PORT='http'",)),
    ({**PLACE, "LOCAL_RANK": "0"}, 2, 2, ("NODE_RANK",)),
    ({**PLACE, "LOCAL_RANK": "2"}, 2, None, ("the rank is 2",)),
    ({**PLACE, "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, 2, None, ("WORLD_SIZE=4", "it is 2")),
    (torchrun(1, 2, 1, 2), 3, None, ("torchrun", "2 process(es)", "--devices 3", "leave")),
    (torchrun(1, 2, 1, 2), 1, None, ("--devices 1", "--nproc_per_node 1")),
    (torchrun(1, 2, 1, 2), 1, 2, ("--devices 1 --num_nodes 2", "--nnodes 2")),
    (torchrun(0, 1, 0, 1), 2, None, ("--devices 2", "--nproc_per_node 2")),
    (torchrun(2, 2, 1, 2), None, None, ("the rank is 2",)),
    (torchrun(0, 3, 0, 2), None, None, ("every machine needs as many",)),
    (torchrun(0, 2, 0, 2, WORLD_SIZE=""), None, None, ("WORLD_SIZE is not set",)),
    (torchrun(0, 2, 0, 2, WORLD_SIZE="two"), None, None, ("WORLD_SIZE='two'",)),
    ({**DEEPSPEED, "MASTER_ADDR": ""}, None, None, ("MASTER_ADDR",)),
    (DEEPSPEED, 4, None, ("DeepSpeed's launcher", "--devices 4", "--num_gpus 4")),
    (
        {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **PLACE},
        None,
        None,
        ("--devices and --num_nodes",),
    ),
    (task(1, 2, 1), 4, None, ("srun", "--devices 4", "--ntasks-per-node 4")),
    (task(1, 2, 1), 1, None, ("--devices 1",)),
    (task(1, 2, 1), 1, 2, ("--num_nodes 2",)),
    (task(3, 2, 1), None, None, ("the rank is 3",)),
    (task(2, 2, 0, SLURM_STEP_NUM_NODES="2", **PLACE), 2, 2, ("the rank is 2",)),
    (task(1, 1, 0), 2, None, ("the rank is 1",)),
    ({"RWKV_TRAIN_LAUNCH": "abc"}, None, None, ("RWKV_TRAIN_LAUNCH", "unset")),
    ({"RWKV_TRAIN_LAUNCH": "{}"}, None, None, ("RWKV_TRAIN_LAUNCH", "unset")),
    (task(1, 2, 1, SLURM_LOCALID="one"), None, None, ("SLURM_LOCALID='one'",)),
    (task(1, 2, 1, SLURM_LOCALID=""), None, None, ("SLURM_LOCALID is not set",)),
    (task(0, 3, 0, **NODES, SLURM_STEP_TASKS_PER_NODE="2,1"), None, None, ("2,1", "ntasks")),
    (task(0, 2, 0, **{**NODES, "SLURM_STEP_NODELIST": ""}), None, None, ("MASTER_ADDR",)),
    ({**task(1, 2, 1), "RANK": "0"}, None, None, ("RANK=0", "srun", "it is 1")),
    (
        {**task(1, 2, 1), "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
        None,
        None,
        ("RANK=0 contradicts srun",),
    ),
    (mpi(1, 2, 1, 2), 4, None, ("Open MPI", "--devices 4", "mpirun -n 4")),
    (mpi(3, 4, 1, 2), None, None, ("MASTER_ADDR",)),
    (mpi(2, 2, 1, 2), None, None, ("the rank is 2",)),
    (mpi(1, 2, 2, 2), None, None, ("the local rank is 2",)),
    ({**mpi(1, 2, 1, 2), "WORLD_SIZE": "4"}, None, None, ("WORLD_SIZE=4", "Open MPI")),
    ({"OMPI_COMM_WORLD_RANK": "1"}, None, None, ("OMPI_COMM_WORLD_SIZE is not set",)),
    ({**HYDRA, "PMI_SIZE": "-2"}, None, None, ("PMI_SIZE='-2'",)),
    ({"PMIX_RANK": "1"}, None, None, ("PMIX_RANK=1", "unset PMIX_RANK")),
]


@pytest.mark.parametrize(("variables", "devices", "num_nodes", "words"), WRONG)
def test_contradictions_and_half_a_description_are_refused_in_one_line(
    variables: dict[str, str], devices: int | None, num_nodes: int | None, words: tuple[str, ...]
):
    with pytest.raises(ConfigError) as refused:
        decide(variables, devices, num_nodes)
    line = str(refused.value)
    assert "\n" not in line
    for word in words:
        assert word in line
