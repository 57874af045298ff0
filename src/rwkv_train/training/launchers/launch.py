"""The processes of a run: how many, which of them this is, where they meet."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from rwkv_train.errors import ConfigError

# The one that PyTorch takes too.
DEFAULT_PORT = 29500
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Launch:
    """The decision who this process is, and whether it has to start others.

    launcher: who started the processes; local_size: processes of this machine; main_port: 0 for a
    free one; attempt: how often the launcher has started all of them anew; agent_store: the
    launcher holds a store at the main address itself; may_change: it may start them anew in another
    number; parent: the process of this program that has started this one; notes: what was ignored,
    a line each.
    """

    launcher: str
    world_size: int = 1
    rank: int = 0
    local_rank: int = 0
    local_size: int = 1
    node_rank: int = 0
    num_nodes: int = 1
    main_address: str = LOOPBACK
    main_port: int = 0
    starts_children: bool = False
    attempt: int = 0
    agent_store: bool = False
    may_change: bool = False
    parent: int = 0
    notes: tuple[str, ...] = ()

    def speaks_alone(self) -> bool:
        """Tells whether this process is the one of its machine that speaks without rank zero."""
        return self.rank == 0 or self.local_rank == (1 if self.node_rank == 0 else 0)

    def describe(self) -> str:
        """Returns the decision as the header tells it."""
        if self.world_size == 1:
            return "1"
        told = f"{self.world_size}, started by {self.launcher}"
        if self.num_nodes == 1:
            return told
        return (
            f"{told}: {self.num_nodes} machines with {self.local_size} each, which meet at "
            f"{self.main_address}:{self.main_port}"
        )

    def child(self, local_rank: int, parent: int) -> Launch:
        """Returns the decision of another process of this machine, which `parent` starts."""
        return replace(
            self,
            rank=self.rank + local_rank,
            local_rank=local_rank,
            starts_children=False,
            parent=parent,
            notes=(),
        )

    def variables(self) -> dict[str, str]:
        """Returns the variables that libraries read, torchrun's."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_size),
            "MASTER_ADDR": self.main_address,
            "MASTER_PORT": str(self.main_port),
        }

    def to_json(self) -> str:
        """Returns the decision as a child is told it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Launch:
        """Returns the decision that `to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "notes": tuple(values["notes"])})


@dataclass(frozen=True)
class Claim:
    """One launcher's words about this process, not yet compared with the flags.

    local_size, num_nodes: None where the launcher does not tell; advice: how to start another
    number of processes with it; per_machine: it may have started one process a machine, each of
    which is to start its others; may_change: as of `Launch`.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_size: int | None
    advice: str
    node_rank: int | None = None
    num_nodes: int | None = None
    address: str | None = None
    port: int | None = None
    per_machine: bool = False
    attempt: int = 0
    agent_store: bool = False
    may_change: bool = False
    notes: tuple[str, ...] = ()


class Variables:
    """Environment variables as numbers and texts; an empty one counts as not set."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def text(self, *names: str) -> str | None:
        """Returns the first of these variables that is set."""
        values = (self._environment.get(name, "").strip() for name in names)
        return next((value for value in values if value), None)

    def number(self, *names: str) -> int | None:
        """Returns the first of these that is set; raises ConfigError unless it is a number >= 0."""
        for name in names:
            value = self.text(name)
            if value is not None:
                return self._whole(name, value)
        return None

    def needed(self, launcher: str, *names: str) -> int:
        """Returns the first of these that is set; raises ConfigError when none is."""
        value = self.number(*names)
        if value is None:
            raise ConfigError(
                f"the variables of {launcher} are incomplete: {' or '.join(names)} is not set; "
                f"start with {launcher}, or unset its variables"
            )
        return value

    def are_set(self, *names: str) -> bool:
        """Tells whether all of them are set."""
        return all(self.text(name) is not None for name in names)

    def port(self) -> int | None:
        """Returns MASTER_PORT; raises ConfigError when no port has that number."""
        port = self.number("MASTER_PORT")
        if port is not None and not 0 < port < 65536:
            raise ConfigError(
                f"MASTER_PORT={port} is no port: give one from 1 to 65535, or unset it"
            )
        return port

    def node_rank(self) -> int | None:
        """Returns NODE_RANK, or GROUP_RANK; raises ConfigError when they differ."""
        node, group = self.number("NODE_RANK"), self.number("GROUP_RANK")
        if node is not None and group is not None and node != group:
            raise ConfigError(f"NODE_RANK={node} contradicts GROUP_RANK={group}; unset one of them")
        return group if node is None else node

    def _whole(self, name: str, value: str) -> int:
        if not (value.isascii() and value.isdigit()):
            raise ConfigError(
                f"the environment variable {name}={value!r} is not a whole number from 0; set it "
                f"right, or remove it (unset {name})"
            )
        return int(value)


def job_port(job: str) -> int:
    """Returns a port that all processes of a job work out alike, below those given at random."""
    return 20000 + zlib.crc32(job.encode()) % 10000
