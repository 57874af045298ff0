"""Decides from environment variables and flags who this process is; reads nothing else.

A launcher that has started this process says how many there are, and flags that say otherwise are
refused. Without one this process starts the others of its machine. Variables that say half of it
are refused: a run would wait for processes that nobody starts, or write what another run writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from rwkv_train.errors import ConfigError
from rwkv_train.training.launchers.launch import DEFAULT_PORT, LOOPBACK, Claim, Launch, Variables
from rwkv_train.training.launchers.readers import READERS, rank_variables

# Set for the processes that this program starts itself.
CHILD_VARIABLE = "RWKV_TRAIN_LAUNCH"
_RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
ITSELF = "this program"


def decide(
    environment: Mapping[str, str],
    devices: int | None,
    num_nodes: int | None,
    available: Callable[[], int] = lambda: 1,
) -> Launch:
    """Returns who this process is.

    devices, num_nodes: as given, None if they were not; available: counts the devices that a run
    takes when it is told none. Raises ConfigError for contradictions and for half a description.
    """
    told = environment.get(CHILD_VARIABLE)
    if told:
        return _as_told(told)
    variables = Variables(environment)
    claims = [claim for reader in READERS if (claim := reader(variables)) is not None]
    claim = claims[0] if claims else None
    if claim is None:
        by_hand = _by_hand(variables, devices, num_nodes)
        if by_hand is not None:
            _check_below("the rank", by_hand.rank, by_hand.world_size, "--devices x --num_nodes")
            return _from_claim(by_hand, devices, num_nodes)
        _refuse_leftovers(variables)
        return _own_start(variables, devices or available(), num_nodes or 1)
    _check_rank_variables(variables, claims)
    whole = f"the number that {claim.launcher} tells"
    _check_below("the rank", claim.rank, claim.world_size, whole)
    # A shell, or the only task of an allocation: there is nobody else yet.
    if claim.per_machine and claim.world_size == 1:
        notes = (f"{claim.launcher} started one process, which starts the others",)
        own = _own_start(variables, devices or available(), num_nodes or 1)
        return own if own.world_size == 1 else replace(own, notes=own.notes + notes)
    if claim.per_machine and _is_one_a_machine(claim, devices, num_nodes):
        assert devices is not None and num_nodes is not None, "compared with the claim"
        return _machine(claim, devices, num_nodes)
    return _from_claim(claim, devices, num_nodes)


def _as_told(told: str) -> Launch:
    """Returns the decision of the process that has started this one."""
    try:
        return Launch.from_json(told)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{CHILD_VARIABLE} is for the processes that this program starts itself, and says "
            f"{told[:40]!r}; remove it (unset {CHILD_VARIABLE})"
        ) from error


def _own_start(variables: Variables, devices: int, num_nodes: int) -> Launch:
    """Returns the decision of a process that nobody has started for this run."""
    node = variables.node_rank()
    notes = _allocation_notes(variables)
    if num_nodes == 1:
        if node:
            name = "NODE_RANK" if variables.text("NODE_RANK") else "GROUP_RANK"
            raise ConfigError(
                f"{name}={node} is set, but the run has one machine; give --num_nodes with their "
                f"number, or remove it (unset {name})"
            )
        if devices > 1 and variables.text("MASTER_ADDR") not in (None, LOOPBACK, "localhost"):
            notes += ("MASTER_ADDR is ignored: the run has one machine",)
        return Launch(
            ITSELF, world_size=devices, local_size=devices, starts_children=devices > 1, notes=notes
        )
    address = _required_address(variables.text("MASTER_ADDR"), num_nodes, ITSELF)
    if node is None:
        raise ConfigError(
            f"--num_nodes {num_nodes} needs NODE_RANK: set it to 0 on the machine of MASTER_ADDR "
            f"and to 1 to {num_nodes - 1} on the others, or start with srun, torchrun or mpirun"
        )
    _check_below("NODE_RANK", node, num_nodes, "--num_nodes")
    return Launch(
        ITSELF,
        world_size=devices * num_nodes,
        rank=node * devices,
        local_size=devices,
        node_rank=node,
        num_nodes=num_nodes,
        main_address=address,
        main_port=variables.port() or DEFAULT_PORT,
        starts_children=devices > 1,
        notes=notes,
    )


def _machine(claim: Claim, devices: int, num_nodes: int) -> Launch:
    """Returns the decision of the only process that a launcher has started on this machine."""
    return Launch(
        f"{claim.launcher} (one a machine) and {ITSELF}",
        world_size=devices * num_nodes,
        rank=claim.rank * devices,
        local_size=devices,
        node_rank=claim.rank,
        num_nodes=num_nodes,
        main_address=_required_address(claim.address, num_nodes, claim.launcher),
        main_port=claim.port or DEFAULT_PORT,
        starts_children=devices > 1,
        notes=claim.notes,
    )


def _from_claim(claim: Claim, devices: int | None, num_nodes: int | None) -> Launch:
    """Returns the decision of a process that a launcher has started; compares it with the flags."""
    nodes = claim.num_nodes or num_nodes
    size = claim.local_size or devices
    if size is None:
        size = claim.world_size // (nodes or 1)
    if size < 1 or claim.world_size % size or (nodes and nodes * size != claim.world_size):
        raise ConfigError(_contradiction(claim, size, nodes, devices, num_nodes))
    nodes = claim.world_size // size
    if (devices or size) != size or (num_nodes or nodes) != nodes:
        raise ConfigError(_contradiction(claim, size, nodes, devices, num_nodes))
    _check_below("the local rank", claim.local_rank, size, "the number of processes of a machine")
    if claim.local_size is None and claim.local_rank != claim.rank % size:
        raise ConfigError(
            f"rank {claim.rank} of {claim.launcher} is number {claim.local_rank} of its machine, "
            f"which does not fit {size} process(es) on each of {nodes}; give --devices and "
            "--num_nodes"
        )
    node = claim.rank // size if claim.node_rank is None else claim.node_rank
    _check_below("the machine's number", node, nodes, "the number of machines")
    return Launch(
        claim.launcher,
        world_size=claim.world_size,
        rank=claim.rank,
        local_rank=claim.local_rank,
        local_size=size,
        node_rank=node,
        num_nodes=nodes,
        main_address=_required_address(claim.address, nodes, claim.launcher),
        main_port=claim.port or DEFAULT_PORT,
        attempt=claim.attempt,
        agent_store=claim.agent_store,
        may_change=claim.may_change,
        notes=claim.notes,
    )


def _by_hand(variables: Variables, devices: int | None, num_nodes: int | None) -> Claim | None:
    """Returns the claim of LOCAL_RANK with a place to meet; the flags say how many there are."""
    if not variables.are_set("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        return None
    size, nodes = devices or 1, num_nodes or 1
    if size * nodes == 1:
        return None
    node, local = variables.node_rank(), variables.number("LOCAL_RANK")
    assert local is not None, "seen above"
    if node is None and nodes > 1:
        raise ConfigError(f"--num_nodes {nodes} needs NODE_RANK beside LOCAL_RANK={local}; set it")
    claim = Claim(
        "LOCAL_RANK",
        rank=(node or 0) * size + local,
        world_size=size * nodes,
        local_rank=local,
        local_size=size,
        advice="a process for every LOCAL_RANK below {devices}",
        node_rank=node or 0,
        num_nodes=nodes,
        address=variables.text("MASTER_ADDR"),
        port=variables.port(),
    )
    _check_rank_variables(variables, [claim])
    return claim


def _check_rank_variables(variables: Variables, claims: list[Claim]) -> None:
    """Raises ConfigError when RANK and its like say something else than another launcher."""
    complete = claims[0].launcher == "torchrun" or rank_variables(variables) is not None
    # One process a machine may have started others, which RANK then counts.
    others = [c for c in claims if c.per_machine and c.local_size != 1]
    claim = next(iter(others), None) if complete else claims[0]
    if claim is None or claims[0].launcher == "torchrun":
        return
    expected = zip(_RANK_VARIABLES, (claim.rank, claim.world_size, claim.local_rank))
    for name, value in expected:
        found = variables.number(name)
        if found is not None and found != value:
            raise ConfigError(
                f"{name}={found} contradicts {claim.launcher}, for which it is {value}; remove "
                f"what another run has left over (unset {' '.join(_RANK_VARIABLES)})"
            )


def _refuse_leftovers(variables: Variables) -> None:
    """Raises ConfigError when RANK, WORLD_SIZE or LOCAL_RANK are set, but not all of them."""
    numbers = {name: variables.number(name) for name in _RANK_VARIABLES}
    found = {name: value for name, value in numbers.items() if value is not None}
    if found:
        missing = " and ".join(name for name in _RANK_VARIABLES if name not in found)
        told = " and ".join(f"{name}={value}" for name, value in found.items())
        raise ConfigError(
            f"{told} in the environment without {missing}: a launcher sets all of them. Remove "
            f"what is left over (unset {' '.join(found)}), or set {missing} too"
        )
    if variables.are_set("PMIX_RANK"):
        rank = variables.number("PMIX_RANK")
        raise ConfigError(
            f"PMIX_RANK={rank} says that a launcher started this process, but not how many there "
            "are; set RANK, WORLD_SIZE and LOCAL_RANK for each, or remove it (unset PMIX_RANK)"
        )


def _is_one_a_machine(claim: Claim, devices: int | None, num_nodes: int | None) -> bool:
    """Tells whether the flags ask for several processes on each machine of a launcher's one."""
    return claim.local_size == 1 and num_nodes == claim.world_size and (devices or 1) > 1


def _required_address(address: str | None, num_nodes: int, launcher: str) -> str:
    if address is not None:
        return address
    if num_nodes == 1:
        return LOOPBACK
    raise ConfigError(
        f"{num_nodes} machines, started by {launcher}, need MASTER_ADDR: set it on all of them to "
        "the name or address of the first"
    )


def _check_below(name: str, value: int, limit: int, what: str) -> None:
    if value >= limit:
        raise ConfigError(
            f"{name} is {value}, but counts from 0 to {limit - 1}, for {what} is {limit}; set it "
            "right"
        )


def _contradiction(
    claim: Claim, size: int, nodes: int | None, devices: int | None, num_nodes: int | None
) -> str:
    given = [f"--devices {devices}"] if devices is not None else []
    given += [f"--num_nodes {num_nodes}"] if num_nodes is not None else []
    wanted_devices, wanted_nodes = devices or size, num_nodes or nodes or 1
    advice = claim.advice.format(
        devices=wanted_devices, nodes=wanted_nodes, world=wanted_devices * wanted_nodes
    )
    there = f"{claim.launcher} started {claim.world_size} process(es), {size} on a machine"
    if not given:
        return f"{there}: every machine needs as many; start with {advice}"
    return f"{there}, which is not {' '.join(given)}; leave these flags out, or start with {advice}"


def _allocation_notes(variables: Variables) -> tuple[str, ...]:
    """Returns a line when SLURM's variables are there, but not those of a task."""
    names = [name for name in ("SLURM_NTASKS", "SLURM_JOB_ID") if variables.text(name)]
    if not names:
        return ()
    told = ", ".join(f"{name}={variables.text(name)}" for name in names)
    return (f"{told}: SLURM's allocation; srun did not start this process, so it is not counted",)
