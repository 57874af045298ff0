"""Machines that lack shards, or hold other ones, are named together, before anything is made."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.distributed import HashStore

from benchmarks.sparse_shards import write_sparse_shards
from rwkv_train.config.schema import DataConfig
from rwkv_train.errors import DataError, TrainerError
from rwkv_train.training.distributed.rank_store import RankStore, RemoteRankError
from rwkv_train.training.start.data_agreement import (
    faults_by_machine,
    read_by_all,
    require_same_sizes,
)
from rwkv_train.training.start.data_files import OpenedData, open_data_files

Copies = Callable[[int], list[Path]]


def meet(folders: list[str], hosts: list[str]) -> list[TrainerError | OpenedData]:
    """What ranks on these hosts get, each with its data in a folder of its own."""
    store = HashStore()
    results: dict[int, TrainerError | OpenedData] = {}

    def take_part(rank: int) -> None:
        ranks = RankStore(
            store, rank=rank, world_size=len(hosts), host=hosts[rank], machines=3, seconds=20
        )
        data = DataConfig(data_file=folders[rank])
        try:
            opened = read_by_all(ranks, "files", lambda: open_data_files(data))
            require_same_sizes(ranks, opened)
            results[rank] = opened
        except TrainerError as error:
            results[rank] = error

    threads = [threading.Thread(target=take_part, args=(rank,)) for rank in range(len(hosts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in range(len(hosts))]


@pytest.fixture
def copies(tmp_path: Path) -> Copies:
    """Makes folders as of several machines, each with 20 shards of 100 tokens."""

    def build(count: int) -> list[Path]:
        folders = [tmp_path / f"machine{number}" for number in range(count)]
        for folder in folders:
            folder.mkdir()
            write_sparse_shards(folder / "data", 20, 100)
        return folders

    return build


def prefixes(folders: list[Path]) -> list[str]:
    return [str(folder / "data") for folder in folders]


HOSTS = ["one", "one", "two", "six"]


def test_ranks_that_have_all_shards_go_on(copies: Copies) -> None:
    a, b, c = copies(3)
    results = meet(prefixes([a, a, b, c]), HOSTS)
    assert all(isinstance(result, OpenedData) for result in results)


def test_each_machine_that_lacks_shards_names_its_own(copies: Copies) -> None:
    a, b, c = copies(3)
    for number in range(4, 10):
        (b / f"data-{number:05d}.bin").unlink()
    (c / "data-00017.idx").unlink()
    with (c / "data-00003.bin").open("r+b") as file:
        file.truncate(120)
    results = meet(prefixes([a, a, b, c]), HOSTS)
    assert isinstance(results[0], DataError)
    told = str(results[0])
    assert told.startswith("2 of 3 machines cannot read the data of this run: rank 2 on two: 6 of ")
    assert "data-00004.bin, data-00005.bin, data-00006.bin, data-00007.bin and 2 more" in told
    assert "; rank 3 on six: 1 of the 20 shards" in told and "data-00017.idx" in told
    assert "data-00003.bin has 120 bytes but its index needs 200" in told and "\n" not in told
    for other in results[1:]:
        assert isinstance(other, RemoteRankError)
        assert other.fault.status == 2 and other.fault.message == told


def test_a_fault_that_all_ranks_meet_is_told_as_it_is(copies: Copies) -> None:
    (a,) = copies(1)
    (a / "data-00001.bin").unlink()
    results = meet(prefixes([a] * 4), HOSTS)
    assert all(isinstance(result, DataError) for result in results)
    assert str(results[0]).startswith("1 of the 20 shards")


def test_shards_of_other_sizes_are_named_with_both(copies: Copies, tmp_path: Path) -> None:
    a, b = copies(2)
    c = tmp_path / "older"
    c.mkdir()
    write_sparse_shards(c / "data", 20, 90)
    results = meet(prefixes([a, a, b, c]), HOSTS)
    told = str(results[0])
    assert isinstance(results[0], DataError) and told.startswith("rank 3 on six: ")
    assert f"six: 20 of the 20 shards of {c / 'data'} hold other numbers of tokens than on" in told
    assert "on one: data-00000 (90, there 100), " in told and "and 16 more; copy" in told
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    write_sparse_shards(fewer / "data", 19, 100)
    told = str(meet(prefixes([a, a, b, fewer]), HOSTS)[0])
    assert f"six: {fewer / 'data'} has 19 shards here, 20 on one" in told


def test_machines_with_one_fault_share_a_line() -> None:
    faults = [None, "x", "x", "y", "x"]
    told = faults_by_machine(["a", "b", "b", "c", "d"], faults)
    assert told == (
        "3 of 4 machines cannot read the data of this run: ranks 1, 2 on b and rank 4 on d: x; "
        "rank 3 on c: y"
    )
    # Eight ranks of one machine need no count of machines.
    told = faults_by_machine(["a"] * 8, [*["z"] * 7, None])
    assert told == "ranks 0, 1, 2, 3 and 3 more on a: z"


def test_a_rank_alone_raises_its_own_fault(tmp_path: Path) -> None:
    data = DataConfig(data_file=str(tmp_path / "none"))
    with pytest.raises(DataError, match="does not exist"):
        read_by_all(RankStore(), "files", lambda: open_data_files(data))
