"""Data that every machine of a run has: asked before anything is allocated.

Each rank looks at its own disk. What some of them lack is told together, by machine: a cluster to
which copies are still being made is mended in one go, not shard by shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rwkv_train.data.samples.token_sources import pairs_of
from rwkv_train.errors import DataError, first_few
from rwkv_train.training.distributed.rank_store import RankFault, RankStore, RemoteRankError
from rwkv_train.training.start.data_files import DataFiles, OpenedData

_Result = TypeVar("_Result")
# Of a data set: its name, and name and tokens of each of its pairs.
_Sizes = list[tuple[str, list[tuple[str, int]]]]
# Machines, or groups of them, whose faults are told.
_SHOWN = 6


def read_by_all(ranks: RankStore, key: str, read: Callable[[], _Result]) -> _Result:
    """Returns what `read` returns here, once it has returned on all ranks. Collective.

    key: tells this question from others.  Raises the DataError of `read` where all ranks meet the
    same; where only some do, DataError with the faults of all machines on rank zero, and
    RemoteRankError on the others.
    """
    result, fault = [], None
    try:
        result.append(read())
    except DataError as error:
        fault = error
    own = {"host": ranks.host, "fault": None if fault is None else fault.in_one_line()}
    answers = ranks.gather(key, own)
    faults = [answer["fault"] for answer in answers]
    if fault is not None and len(set(faults)) == 1:
        raise fault
    _require_none(ranks, [answer["host"] for answer in answers], faults)
    return result[0]


def require_same_sizes(ranks: RankStore, opened: OpenedData | None) -> None:
    """Raises as `read_by_all` where a shard holds other numbers of tokens elsewhere. Collective."""
    sizes = _sizes(opened)
    # Names are left out: data may lie in other folders on another machine.
    numbers = [[tokens for _, tokens in pairs] for _, pairs in sizes]
    digest = hashlib.sha256(repr(numbers).encode()).hexdigest()
    answers = ranks.gather("data sizes", [ranks.host, digest])
    if len({digest for _, digest in answers}) == 1:
        return
    hosts = [host for host, _ in answers]
    first = ranks.gather("data sizes of rank zero", sizes if ranks.rank == 0 else None)[0]
    _require_none(ranks, hosts, ranks.gather("data", _difference(first, sizes, hosts[0])))


def _require_none(ranks: RankStore, hosts: Sequence[str], faults: Sequence[str | None]) -> None:
    if not any(faults):
        return
    told = faults_by_machine(hosts, faults)
    # All of them know, so that none has to be told; one tells people.
    if ranks.rank == 0:
        raise DataError(told)
    raise RemoteRankError(RankFault(0, hosts[0], told, status=2))


def faults_by_machine(hosts: Sequence[str], faults: Sequence[str | None]) -> str:
    """Returns the faults in a line: each once, behind the ranks and machines that have it.

    hosts, faults: of every rank; None: it has none.
    """
    having: dict[str, dict[str, list[str]]] = {}
    for rank, (host, fault) in enumerate(zip(hosts, faults)):
        if fault is not None:
            having.setdefault(fault, {}).setdefault(host, []).append(str(rank))
    told = [f"{_places(machines)}: {fault}" for fault, machines in having.items()]
    line = first_few(told, _SHOWN, "; ")
    affected = {host for machines in having.values() for host in machines}
    if len(affected) == 1:
        return line
    count = f"{len(affected)} of {len(set(hosts))} machines"
    return f"{count} cannot read the data of this run: {line}"


def _places(machines: Mapping[str, Sequence[str]]) -> str:
    """Returns machines with their ranks, as people look for them."""
    places = [
        f"rank{'s' if len(ranks) > 1 else ''} {first_few(ranks)} on {host}"
        for host, ranks in machines.items()
    ]
    return first_few(places, _SHOWN, " and ")


def _sizes(opened: OpenedData | None) -> _Sizes:
    """Returns what the files of the data are called here, and how many tokens each holds."""
    return [] if opened is None else [(part.name, _of_part(part)) for part in opened.parts]


def _of_part(files: DataFiles) -> list[tuple[str, int]]:
    pairs = [(Path(pair.prefix).name, pair.tokens) for pair in pairs_of(files.source)]
    return pairs or [(Path(files.name).name, files.source.tokens)]


def _difference(first: Sequence[Any], own: _Sizes, host: str) -> str | None:
    """Returns in what the sizes here differ from those of rank zero; None: in nothing.

    first: `_Sizes` of rank zero, as JSON gives them back; host: of rank zero.
    """
    if len(first) != len(own):
        return f"{len(own)} data sets here, {len(first)} on {host}; give all ranks the same flags"
    told = []
    for (_, theirs), (name, pairs) in zip(first, own):
        if len(theirs) != len(pairs):
            told.append(f"{name} has {len(pairs)} shards here, {len(theirs)} on {host}")
            continue
        other = [
            f"{shard} ({here:,}, there {there:,})"
            for (shard, here), (_, there) in zip(pairs, theirs)
            if here != there
        ]
        if other:
            told.append(
                f"{len(other)} of the {len(pairs)} shards of {name} hold other numbers of tokens "
                f"than on {host}: {first_few(other)}"
            )
    return f"{first_few(told, 3, '; ')}; copy them again" if told else None
