"""Launchers' words to the processes that they start, a function a launcher.

Each returns its claim, or None when it has not started this process. Names and meanings are those
of the launchers' manuals.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from rwkv_train.errors import ConfigError
from rwkv_train.training.launchers.launch import Claim, Variables, job_port

Reader = Callable[[Variables], Claim | None]


def torchrun(variables: Variables) -> Claim | None:
    """Reads what torchrun tells (torch.distributed.run, and accelerate, which calls it)."""
    if variables.text("TORCHELASTIC_RUN_ID") is None:
        return None
    name = "torchrun"
    # Then rank zero cannot listen there: torchrun's own process does.
    agent_store = variables.text("TORCHELASTIC_USE_AGENT_STORE") == "True"
    restarts = variables.number("TORCHELASTIC_RESTART_COUNT") or 0
    return Claim(
        name,
        rank=variables.needed(name, "RANK"),
        world_size=variables.needed(name, "WORLD_SIZE"),
        local_rank=variables.needed(name, "LOCAL_RANK"),
        local_size=variables.needed(name, "LOCAL_WORLD_SIZE"),
        advice="torchrun --nproc_per_node {devices} --nnodes {nodes}",
        node_rank=variables.number("GROUP_RANK"),
        address=variables.text("MASTER_ADDR"),
        port=variables.port(),
        # Machines count differently: only where a worker failed. A new store needs no count.
        attempt=restarts if agent_store else 0,
        agent_store=agent_store,
        may_change=True,
    )


def rank_variables(variables: Variables) -> Claim | None:
    """Reads RANK, WORLD_SIZE and LOCAL_RANK, which DeepSpeed's launcher and many others set."""
    if not variables.are_set("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        return None
    deepspeed = variables.are_set("CROSS_RANK", "LOCAL_SIZE")
    name = "DeepSpeed's launcher" if deepspeed else "RANK and WORLD_SIZE"
    return Claim(
        name,
        rank=variables.needed(name, "RANK"),
        world_size=variables.needed(name, "WORLD_SIZE"),
        local_rank=variables.needed(name, "LOCAL_RANK"),
        local_size=variables.number("LOCAL_WORLD_SIZE", "LOCAL_SIZE"),
        advice=(
            "deepspeed --num_gpus {devices} --num_nodes {nodes}"
            if deepspeed
            else "WORLD_SIZE={world} and LOCAL_WORLD_SIZE={devices}"
        ),
        node_rank=variables.number("CROSS_RANK") if deepspeed else variables.node_rank(),
        address=variables.text("MASTER_ADDR"),
        port=variables.port(),
    )


def open_mpi(variables: Variables) -> Claim | None:
    """Reads what Open MPI's mpirun tells."""
    if not variables.are_set("OMPI_COMM_WORLD_RANK"):
        return None
    # Its NODE_RANK counts the processes of a machine, of all jobs together; it is not the machine.
    return _mpi(
        variables,
        "Open MPI",
        rank=("OMPI_COMM_WORLD_RANK",),
        size=("OMPI_COMM_WORLD_SIZE",),
        local_rank=("OMPI_COMM_WORLD_LOCAL_RANK",),
        local_size=("OMPI_COMM_WORLD_LOCAL_SIZE",),
    )


def hydra(variables: Variables) -> Claim | None:
    """Reads what mpiexec of MPICH and Intel MPI tells."""
    if not variables.are_set("PMI_RANK", "MPI_LOCALRANKID"):
        return None
    return _mpi(
        variables,
        "mpiexec",
        rank=("PMI_RANK",),
        size=("PMI_SIZE",),
        local_rank=("MPI_LOCALRANKID",),
        local_size=("MPI_LOCALNRANKS",),
    )


def mvapich(variables: Variables) -> Claim | None:
    """Reads what MVAPICH's mpirun_rsh tells."""
    if not variables.are_set("MV2_COMM_WORLD_RANK"):
        return None
    return _mpi(
        variables,
        "MVAPICH",
        rank=("MV2_COMM_WORLD_RANK",),
        size=("MV2_COMM_WORLD_SIZE",),
        local_rank=("MV2_COMM_WORLD_LOCAL_RANK",),
        local_size=("MV2_COMM_WORLD_LOCAL_SIZE",),
    )


def jsrun(variables: Variables) -> Claim | None:
    """Reads what jsrun of LSF tells."""
    if not variables.are_set("JSM_NAMESPACE_RANK"):
        return None
    return _mpi(
        variables,
        "jsrun",
        rank=("JSM_NAMESPACE_RANK",),
        size=("JSM_NAMESPACE_SIZE",),
        local_rank=("JSM_NAMESPACE_LOCAL_RANK",),
        local_size=("JSM_NAMESPACE_LOCAL_SIZE",),
    )


def slurm(variables: Variables) -> Claim | None:
    """Reads what srun tells its tasks; None where only the allocation speaks.

    A batch script, the shell of salloc and that of `srun --pty` have SLURM's variables too, with
    rank 0 of however many tasks were asked for, and nobody has started the others.
    """
    rank = variables.number("SLURM_PROCID")
    if rank is None or not (rank > 0 or _is_srun_task(variables)):
        return None
    size = variables.needed("srun", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS")
    nodes = variables.number("SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES") or 1
    names = variables.text("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    job = variables.text("SLURM_JOB_ID", "SLURM_JOBID") or ""
    step = variables.text("SLURM_STEP_ID", "SLURM_STEPID") or ""
    address = variables.text("MASTER_ADDR")
    if address is None and nodes > 1 and names is not None:
        address = first_host(names)
    return Claim(
        "srun",
        rank=rank,
        world_size=size,
        local_rank=variables.needed("srun", "SLURM_LOCALID"),
        local_size=_tasks_per_node(variables, size, nodes),
        advice="srun --nodes {nodes} --ntasks-per-node {devices}",
        node_rank=variables.number("SLURM_NODEID"),
        num_nodes=nodes,
        address=address,
        port=variables.port() or job_port(f"slurm {job}.{step}"),
        per_machine=True,
    )


def pmi(variables: Variables) -> Claim | None:
    """Reads PMI's rank and size, which other launchers of MPI programs set."""
    if not variables.are_set("PMI_RANK", "PMI_SIZE"):
        return None
    return _mpi(
        variables,
        "PMI",
        rank=("PMI_RANK",),
        size=("PMI_SIZE",),
        local_rank=("PMI_LOCAL_RANK", "PALS_LOCAL_RANKID"),
        local_size=("PMI_LOCAL_SIZE", "PALS_LOCAL_SIZE"),
    )


# The first that claims the process counts: mpirun may itself be a task of srun's, and both of them
# may start torchrun, but not the other way round.
READERS: tuple[Reader, ...] = (
    torchrun,
    rank_variables,
    open_mpi,
    hydra,
    mvapich,
    jsrun,
    slurm,
    pmi,
)


def first_host(names: str) -> str:
    """Returns the first machine of SLURM's list, such as 'node[07-09,12],other'."""
    match = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\]([^,\[]*))?", names)
    if match is None:
        raise ConfigError(
            f"SLURM_STEP_NODELIST={names!r} names no machine; set MASTER_ADDR to the first one"
        )
    return "".join(part or "" for part in match.groups())


def _is_srun_task(variables: Variables) -> bool:
    if variables.text("SLURM_PTY_PORT") is not None:
        return False
    step = variables.text("SLURM_STEP_ID", "SLURM_STEPID")
    if step is None:
        return variables.text("SLURM_STEP_NUM_TASKS") is not None
    # Above are the numbers of steps that are none: the batch script and the shell of salloc.
    return not step.isdecimal() or int(step) < 0xFFFFFFF0


def _tasks_per_node(variables: Variables, size: int, nodes: int) -> int | None:
    """Returns the tasks on every machine; raises ConfigError when they differ."""
    told = variables.text("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE")
    if told is None or variables.text("SLURM_STEP_TASKS_PER_NODE") is None:
        # That of the allocation need not be that of the step.
        return size // nodes if size % nodes == 0 else None
    counts = {int(count) for count in re.findall(r"(\d+)(?:\(x\d+\))?(?:,|$)", told)}
    if len(counts) != 1:
        raise ConfigError(
            f"srun started different numbers of tasks on its machines ({told}); give srun "
            "--ntasks-per-node"
        )
    return counts.pop()


def _mpi(
    variables: Variables,
    name: str,
    *,
    rank: tuple[str, ...],
    size: tuple[str, ...],
    local_rank: tuple[str, ...],
    local_size: tuple[str, ...],
) -> Claim:
    """Returns the claim of a launcher of MPI programs, which tells no place to meet."""
    ranks, world = variables.needed(name, *rank), variables.needed(name, *size)
    local, count = variables.number(*local_rank), variables.number(*local_size)
    if local is None:
        # One machine, as far as is known; that they are several shows when they meet.
        local, count = ranks, world
    # The same for all, and another for the next job. Not PMI_ID: some write the rank there.
    job = variables.text("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "PMI_JOBID")
    return Claim(
        name,
        rank=ranks,
        world_size=world,
        local_rank=local,
        local_size=count,
        advice="mpirun -n {world}",
        address=variables.text("MASTER_ADDR"),
        port=variables.port() or (job_port(job) if job else None),
        per_machine=True,
    )
