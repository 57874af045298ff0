"""Processes that do not fit together find it out when they meet."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from socket import socket

import pytest
from torch.distributed import HashStore

from rwkv_train.errors import ConfigError, TrainingError
from rwkv_train.training.distributed.rank_store import RankStore
from rwkv_train.training.distributed.rendezvous import (
    LateRankError,
    check_all_there,
    check_place,
    meet,
)
from rwkv_train.training.launchers.launch import Launch

FIRST = Launch("torchrun", world_size=2, local_size=2, main_port=1)
SECOND = replace(FIRST, rank=1, local_rank=1)


def ranks_of(store: HashStore, launch: Launch, host: str = "one") -> RankStore:
    return RankStore(store, rank=launch.rank, world_size=launch.world_size, host=host)


def free_port() -> int:
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def all_there(store: HashStore, hosts: tuple[str, str]) -> list[BaseException | None]:
    """Has both ranks come, and returns what each of them meets."""
    launches = (FIRST, SECOND)
    ranks = [ranks_of(store, *each) for each in zip(launches, hosts)]
    for each, launch in zip(ranks, launches):
        check_place(each, store, launch)
    with ThreadPoolExecutor(2) as pool:
        calls = [
            pool.submit(check_all_there, each, store, launch)
            for each, launch in zip(ranks, launches)
        ]
        return [call.exception() for call in calls]


def test_machines_that_count_differently_are_refused():
    store = HashStore()
    check_place(ranks_of(store, FIRST), store, FIRST)
    other = replace(SECOND, world_size=4, local_size=4)
    with pytest.raises(ConfigError, match=r"1 machine\(s\) with 4 .*1 machine\(s\) with 2"):
        check_place(ranks_of(store, other), store, other)


def test_a_place_that_is_taken_is_refused_and_a_run_that_goes_well_left_alone():
    store = HashStore()
    check_place(ranks_of(store, SECOND), store, SECOND)
    with pytest.raises(ConfigError, match=r"rank 1 of 2 .* already: NODE_RANK") as refused:
        check_place(ranks_of(store, SECOND), store, SECOND)
    assert not isinstance(refused.value, LateRankError)
    store = HashStore()
    assert all_there(store, ("one", "one")) == [None, None]
    with pytest.raises(LateRankError):
        check_place(ranks_of(store, SECOND), store, SECOND)


def test_processes_of_two_machines_are_no_run_of_one():
    for error in all_there(HashStore(), ("one", "two")):
        assert isinstance(error, ConfigError) and "one, two" in str(error)


def test_an_address_that_leads_nowhere_is_refused():
    launch = replace(SECOND, main_address="no-such-machine.invalid")
    with pytest.raises(ConfigError, match=r"MASTER_ADDR=no-such-machine\.invalid"):
        meet(launch, 1.0)


def test_a_port_that_is_in_use_is_refused():
    with socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        launch = replace(FIRST, main_port=other.getsockname()[1])
        with pytest.raises(ConfigError, match=rf"MASTER_PORT={launch.main_port} is in use"):
            meet(launch, 1.0)


def test_a_port_of_another_program_is_named():
    with socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        launch = replace(SECOND, main_port=other.getsockname()[1])
        with pytest.raises(TrainingError, match="is not rank 0 of a run: another program has the"):
            meet(launch, 0.5)


def test_a_machine_that_does_not_answer_is_named_with_its_port(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("rwkv_train.training.distributed.rendezvous.ANNOUNCED_AFTER_SECONDS", 0.05)
    launch = replace(SECOND, num_nodes=2, local_size=1, local_rank=0, main_port=free_port())
    place = f"127.0.0.1:{launch.main_port}"
    with pytest.raises(TrainingError, match=rf"machine 0 did not answer at {place} for 0\.5 s"):
        meet(launch, 0.5)
    assert capsys.readouterr().err == f"waiting for machine 0 at {place} ...\n"


def test_a_second_run_of_the_same_processes_has_keys_of_its_own():
    launch = replace(FIRST, main_port=free_port(), attempt=3)
    (store, one), (again, two) = meet(launch, 5.0), meet(launch, 5.0)
    assert store is again
    assert (one, two) == ("rwkv/3/0", "rwkv/3/1")
