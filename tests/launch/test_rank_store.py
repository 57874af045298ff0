"""Ranks compare values and learn of each other's faults over a store, without a process group."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import pytest
from torch.distributed import HashStore

from rwkv_train.errors import TrainingError
from rwkv_train.training.distributed.rank_store import RankStore, RemoteRankError


def stores(ranks: int, **options: Any) -> list[RankStore]:
    shared = HashStore()
    return [
        RankStore(shared, rank=rank, world_size=ranks, host=f"host{rank}", **options)
        for rank in range(ranks)
    ]


def on_all(ranks: list[RankStore], call: Callable[[RankStore], Any]) -> list[Any]:
    """What every rank's call returns, or the exception that it raises."""

    def one(rank: RankStore) -> Any:
        try:
            return call(rank)
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(one, ranks))


def test_every_rank_gets_the_values_of_all_in_their_order():
    values = [{"step": 3, "digest": "aé"}, {"step": 4, "digest": None}, {"step": 5, "digest": ""}]
    found = on_all(stores(3), lambda ranks: ranks.gather("plan", values[ranks.rank]))
    assert found == [values] * 3


def test_a_question_asked_twice_gets_the_second_answers():
    ranks = stores(2)
    on_all(ranks, lambda store: store.gather("plan", ["first", store.rank]))
    found = on_all(ranks, lambda store: store.gather("plan", ["second", store.rank]))
    assert found == [[["second", 0], ["second", 1]]] * 2


def test_a_rank_alone_needs_nobody():
    alone = RankStore()
    assert alone.gather("plan", 7) == [7]
    assert alone.fault() is None
    alone.leave(seconds=60)


def test_leaving_waits_for_nobody_for_long_once_a_launcher_ends_the_others(monkeypatch):
    first, second = stores(2)
    assert first.take_place() and second.take_place()
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    # The second one was killed. It comes to light after five of ten seconds that the launcher
    # stops them all: those who live get the time of two beats to learn why.
    first.leave(10.0, hurries=lambda: now[0] > 5.0)
    assert 7.0 <= now[0] <= 7.2
    # Never longer than it would have waited.
    first.leave(1.0, hurries=lambda: True)
    assert now[0] <= 8.3


def test_leaving_waits_for_those_who_came_and_live():
    first, second, third = stores(4)[:3]
    assert all(rank.take_place() for rank in (first, second, third))
    second.leave(0)
    first.leave(0, rank=third.rank)
    # The fourth has never come; without an end this test would not end.
    first.leave(seconds=3600)


def test_leaving_waits_for_those_who_come_late_as_long_as_it_is_told_to():
    first, second = stores(2)
    assert first.take_place()
    with ThreadPoolExecutor(1) as pool:
        # Rank zero that left at once would take the store, and the reason, with it.
        leaving = pool.submit(first.leave, 3600, late_seconds=3600)
        assert wait([leaving], timeout=0.3).not_done
        assert second.take_place()
        assert wait([leaving], timeout=0.3).not_done
        second.leave(0)
        leaving.result()
    first.leave(3600, late_seconds=0.1)


def test_a_rank_that_leaves_takes_along_those_who_wait_for_it():
    def call(ranks: RankStore) -> Any:
        if ranks.rank == 1:
            return ranks.report("the data differ", status=2)
        return ranks.gather("plan", 0)

    first, fault, last = on_all(stores(3), call)
    assert str(fault) == "rank 1 on host1: the data differ"
    for error in (first, last):
        assert isinstance(error, RemoteRankError)
        assert error.fault == fault
        assert error.fault.status == 2


def test_the_first_fault_counts():
    first, second = stores(2)
    told = first.report("no memory", status=1)
    assert second.report("the connection broke", status=1) == told
    assert second.fault() == told
    assert str(told) == "no memory"


def test_a_rank_that_does_not_come_is_named_after_the_time():
    first, second, _ = stores(3, start_seconds=0.1, seconds=0.4)
    with pytest.raises(TrainingError, match=r"ranks 0, 1, 2 of 3 did not start within 0\.1 s"):
        first.gather("plan", 0)
    assert first.take_place() and second.take_place()
    with pytest.raises(TrainingError, match=r"rank 2 of 3 did not start within 0\.1 s"):
        first.gather("plan", 0)


def test_a_rank_that_has_come_gets_more_time():
    ranks = stores(2, start_seconds=0.05, seconds=0.3)
    assert all(rank.take_place() for rank in ranks)
    with pytest.raises(TrainingError, match=r"rank 1 of 2 did not answer within 0\.3 s"):
        ranks[0].gather("plan", 0)


def test_two_processes_of_one_rank_are_seen():
    ranks = stores(2)
    assert ranks[1].take_place()
    assert not ranks[1].take_place()
    assert RankStore().take_place()


def test_ranks_that_are_missing_are_named_by_machine():
    first = RankStore(HashStore(), world_size=6, machines=3, start_seconds=0.05, host="a")
    with pytest.raises(TrainingError, match=r"machines 0, 1, 2 of 3 \(ranks 0, 1, 2, 3, 4, 5 of 6"):
        first.gather("plan", 0)


def test_a_long_wait_is_announced_by_one_rank(capsys: pytest.CaptureFixture[str]):
    shared = HashStore()
    for announces in (None, 0.05, 30.0):
        first = RankStore(shared, world_size=2, start_seconds=0.3, announces_after=announces)
        with pytest.raises(TrainingError):
            first.gather(f"plan{announces}", 0)
    assert capsys.readouterr().err == "waiting for rank 1 of 2 ...\n"
