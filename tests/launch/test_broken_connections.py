"""Who is behind a connection that broke is found out soon, or not waited for without the time."""

from __future__ import annotations

import signal
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from rwkv_train.errors import FAULT
from rwkv_train.training.distributed.rank_store import RankFault
from rwkv_train.training.distributed.ranks import UNKNOWN_LOSS, Ranks
from rwkv_train.training.distributed.watch import Watch
from rwkv_train.training.launchers.launch import Launch

BROKEN = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer")


def watch_of(silences: list[list[int]], told: RankFault | None = None) -> Watch:
    """A watch without threads, which hears of no rank in turn, and at last of these."""
    watch = object.__new__(Watch)
    heard: Any = SimpleNamespace(
        silent_ranks=lambda seconds: silences.pop(0) if len(silences) > 1 else silences[0]
    )
    watch._judge, watch._fault, watch._seen = heard, told, threading.Event()
    return watch


def ranks_of(watch: Watch) -> tuple[Ranks, list[tuple[str, int, int | None]]]:
    """Rank zero of two with this watch, and what it reports: message, status, rank."""
    ranks = Ranks(Launch("torchrun", world_size=2), [])
    reported: list[tuple[str, int, int | None]] = []

    def report(message: str, status: int, rank: int | None = None, host: object = None) -> Any:
        reported.append((message, status, rank))
        return RankFault(rank or 0, "", message, status)

    ranks._watch, ranks._report = watch, report  # type: ignore[method-assign]
    return ranks, reported


def test_a_silent_rank_is_named_as_soon_as_it_is_silent() -> None:
    ranks, reported = ranks_of(watch_of([[], [], [1]]))
    ranks._cause(BROKEN)
    assert reported == [
        ("does not answer any more: it was killed, or the connection broke", FAULT, 1)
    ]


def test_another_ranks_own_words_count_before_its_silence() -> None:
    told = RankFault(1, "two", "the disk is full", 3)
    ranks, reported = ranks_of(watch_of([[1]], told))
    assert ranks._cause(BROKEN) is told and reported == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_nothing_is_waited_for_when_the_launcher_stops_all_ranks(number: signal.Signals) -> None:
    ranks, reported = ranks_of(watch_of([[]]))
    ranks.stop.received = number
    # In the time of this test a wait of seconds would not show: it asks no second time.
    asked: list[float] = []
    ranks._watch._judge.silent_ranks = lambda seconds: asked.append(seconds) or []  # type: ignore
    ranks._cause(BROKEN)
    assert reported == [(UNKNOWN_LOSS.format(number.name), FAULT, None)]
    assert len(asked) == 1
