"""A process that must leave finishes what it can, in order, and leaves whatever happens."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from rwkv_train.errors import ConfigError, TrainingError
from rwkv_train.training.distributed import ranks as ranks_module
from rwkv_train.training.distributed.leaving import INTERRUPTED, Leaving, bounded
from rwkv_train.training.distributed.rank_store import RankFault, RemoteRankError
from rwkv_train.training.distributed.ranks import Ranks
from rwkv_train.training.launchers.launch import Launch

HANG = RankFault(1, "two", "stands still", 75)


def never(error: Exception) -> RankFault:
    raise AssertionError("asked for the cause of a fault that says it itself")


def test_a_save_ends_before_the_folder_is_given_back_and_the_cause_is_noted_first():
    leaving, done = Leaving(60.0, None), []
    leaving.at_leave(lambda: done.append("lock"))
    leaving.at_leave(lambda: done.append("copies"))
    leaving.at_fault(lambda fault: done.append(str(fault)))
    leaving.at_leave(lambda: done.append("save"))
    leaving.hurry(HANG)
    assert done == ["rank 1 on two: stands still", "save", "copies", "lock"]


def test_what_fails_on_the_way_is_told_and_holds_up_nothing(capfd: pytest.CaptureFixture[str]):
    leaving, done = Leaving(60.0, None), []

    def fail(*words: object) -> None:
        raise OSError(5, "Input/output error")

    leaving.at_fault(fail)
    leaving.at_leave(lambda: done.append("lock"))
    leaving.at_leave(fail)
    leaving.hurry(HANG)
    assert done == ["lock"]
    assert capfd.readouterr().err.count("WARNING: while leaving: Input/output error") == 2


def test_the_cause_is_noted_once():
    leaving, noted = Leaving(60.0, never), []
    leaving.at_fault(noted.append)
    with pytest.raises(RemoteRankError), leaving.noting_faults():
        leaving.note(HANG)
        raise RemoteRankError(RankFault(0, "one", "a consequence", 1))
    assert noted == [HANG]


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (ConfigError("no such\nfile"), RankFault(0, "", "no such; file", 2)),
        (TrainingError("a full disk"), RankFault(0, "", "a full disk", 1)),
        (RemoteRankError(HANG), HANG),
        (KeyboardInterrupt(), RankFault(0, "", INTERRUPTED, 130)),
        (ValueError("x\ny"), RankFault(0, "", "ValueError: x", 1)),
    ],
)
def test_a_process_alone_notes_what_it_raises(error: BaseException, fault: RankFault):
    leaving, noted = Leaving(60.0, None), []
    leaving.at_fault(noted.append)
    with pytest.raises(type(error)) as caught, leaving.noting_faults():
        raise error
    assert caught.value is error and noted == [fault]


def test_a_broken_connection_is_noted_as_the_fault_of_the_rank_behind_it():
    leaving, noted = Leaving(60.0, lambda error: HANG), []
    leaving.at_fault(noted.append)
    with pytest.raises(RemoteRankError) as caught, leaving.noting_faults():
        raise RuntimeError("Connection closed by peer")
    assert caught.value.fault == HANG and noted == [HANG]


def test_a_save_that_never_ends_does_not_keep_the_process(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    leaving, left, statuses = Leaving(0.2, None), threading.Event(), []

    def leave(status: int) -> None:
        statuses.append(status)
        left.set()

    monkeypatch.setattr(os, "_exit", leave)
    leaving.at_leave(lambda: left.wait(60))
    leaving.hurry(HANG)
    assert statuses == [75]
    assert "what was left to save is not on disk after 0.2 s" in capfd.readouterr().err


@pytest.fixture
def restore_signals() -> Iterator[None]:
    """Gives back the handlers that a last word takes away."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Told:
    """A store of two ranks that is told who leaves, and for how long that waits for the others."""

    world_size = 2

    def __init__(self) -> None:
        self.waits: list[tuple[float, float]] = []

    def leave(self, seconds: float, late_seconds: float = 0.0, hurries: object = None) -> None:
        self.waits.append((seconds, late_seconds))


@pytest.mark.usefixtures("restore_signals")
@pytest.mark.parametrize(
    ("rank", "status", "waits", "deaf"),
    [
        # No launcher sees a refusal before all ranks know it, or ends one that does not.
        (1, 2, (20.0, 20.0), True),
        (0, 2, (20.0, 20.0), True),
        # A lost rank is not waited for: a restart is due.
        (1, 1, (0, 0.0), False),
        (0, 1, (10.0, 0.0), False),
    ],
)
def test_a_refusal_is_left_with_together(
    rank: int, status: int, waits: tuple[float, float], deaf: bool
):
    ranks = Ranks(
        Launch("torchrun", world_size=2, rank=rank, local_rank=rank, agent_store=True), []
    )
    store = ranks.store = Told()  # type: ignore[assignment]
    assert ranks._end(0, RankFault(1, "two", "why", status)) == status
    assert store.waits == [waits]
    assert (signal.getsignal(signal.SIGTERM) is signal.SIG_IGN) == deaf


def test_a_rank_that_is_made_to_leave_forbids_the_restart_of_a_refusal(
    monkeypatch: pytest.MonkeyPatch,
):
    forbidden: list[int] = []
    monkeypatch.setattr(
        ranks_module, "forbid_restart", lambda status, told: forbidden.append(status)
    )
    ranks = Ranks(Launch("torchrun", world_size=2, rank=0, agent_store=True), [])
    ranks.store = Told()  # type: ignore[assignment]
    worker = threading.Thread(target=ranks._forced, args=[RankFault(1, "two", "why", 2)])
    worker.start()
    worker.join()
    assert forbidden == [2]


def test_a_call_that_never_comes_back_is_waited_for_only_so_long():
    stuck, done = threading.Event(), threading.Event()
    bounded(0.01, stuck.wait)
    # One that comes back is waited for, and a store that is gone is no fault any more.
    bounded(60.0, done.set)
    assert done.is_set()

    def gone() -> None:
        raise RuntimeError("Connection reset by peer")

    bounded(60.0, gone)
    stuck.set()
