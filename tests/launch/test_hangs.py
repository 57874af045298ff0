"""Who hangs, and who is slow, follows from what every rank tells of itself."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace

import pytest
from torch.distributed import HashStore

from rwkv_train.training.distributed import judge
from rwkv_train.training.distributed.hangs import find_hang
from rwkv_train.training.distributed.judge import Judge, Limits
from rwkv_train.training.distributed.lone_watch import LoneWatch
from rwkv_train.training.distributed.pulse import Beat, Pulse
from rwkv_train.training.distributed.rank_store import RankFault, RankStore
from rwkv_train.training.distributed.stacks import (
    is_stopped,
    own_stack,
    short_stack,
    unanswered_peers,
)
from rwkv_train.training.distributed.stragglers import Stragglers, slow_ratios
from rwkv_train.training.launchers.exit_statuses import HUNG
from tests.launch.hang_at import drop_all
from tests.training.hand_clock import Hand

WAIT, DATA, WORK = "communication", "data", "training"


def beat(phase: str, still: float, **changes: object) -> Beat:
    values = Beat(17, phase, still, 40, True, 17, 9.0, "one", 1)
    return replace(values, **changes)


@pytest.mark.parametrize(
    ("beats", "ranks"),
    [
        # One does not come, the others wait.
        ([(WAIT, 21), (DATA, 22)], [1]),
        ([(WORK, 25), (WAIT, 24), (WAIT, 24)], [0]),
        ([(WAIT, 21), (WORK, 22), (WORK, 23)], [1, 2]),
        # All wait: the link is dead.
        ([(WAIT, 21), (WAIT, 22)], [0, 1]),
        # Nobody gets data.
        ([(DATA, 21), (DATA, 22)], [0, 1]),
        # Not for long enough.
        ([(WAIT, 21), (DATA, 19)], None),
        ([(WAIT, 21), (WAIT, 19)], None),
        # Long steps, which nobody waits for yet.
        ([(WORK, 900), (WORK, 900)], None),
        # Whatever the others wait for may rightly take its time.
        ([(WAIT, 900), ("save", 900)], None),
        ([(WAIT, 900), ("validation", 900)], None),
        ([(WAIT, 900), ("start", 900)], None),
        ([(DATA, 900), ("end", 900)], None),
    ],
)
def test_a_hang_is_of_those_for_whom_the_others_wait(
    beats: list[tuple[str, float]], ranks: list[int] | None
):
    hang = find_hang({rank: beat(*told) for rank, told in enumerate(beats)}, 20.0, 60.0)
    assert (hang and list(hang.ranks)) == ranks


def test_a_first_step_gets_the_time_of_a_start():
    cold = {0: beat(WAIT, 50), 1: beat(WORK, 50, is_warm=False)}
    assert find_hang(cold, 20.0, 60.0) is None
    late = {rank: replace(told, still_seconds=61) for rank, told in cold.items()}
    hang = find_hang(late, 20.0, 60.0)
    assert hang is not None and hang.ranks == (1,)


def test_a_hang_is_told_with_phase_step_and_time():
    hang = find_hang({0: beat(WAIT, 30), 1: beat(DATA, 31.4), 2: beat(DATA, 31)}, 20.0, 60.0)
    assert hang is not None
    assert hang.message == (
        "stands still in data after step 17 for 31 s while 1 waits for it; so does rank 2"
    )
    hang = find_hang({0: beat(WAIT, 30), 1: beat(WAIT, 31, step=18, host="two")}, 20.0, 60.0)
    assert hang is not None
    assert hang.message == (
        "all 2 ranks wait for each other after steps 17 to 18 for 30 s: a connection between them "
        "(on one, two) is dead, or a card hangs"
    )


def test_a_stopped_rank_waits_for_nobody_wherever_it_was_stopped():
    """Ranks that share a sample wait for one another all the time, and are stopped there too."""
    hang = find_hang({0: beat(WAIT, 30), 1: beat(WAIT, 31)}, 20.0, 60.0, stopped=[1])
    assert hang is not None and hang.ranks == (1,)
    assert (
        hang.message == "stands still in communication after step 17 for 31 s while 1 waits for it"
    )


def test_limits_name_a_hang_before_collective_calls_give_up():
    assert Limits.of(1800.0, 600.0) == Limits(60.0, 600.0, 1620.0)
    assert Limits.of(1800.0, 20.0) == Limits(25.0, 20.0, 1620.0)
    assert Limits.of(5.0, 0.0) == Limits(5.0, 0.0, 4.5)


def test_a_pulse_counts_moves_and_the_time_since_the_last():
    hand = Hand()
    pulse = Pulse(hand)
    hand.wait(3)
    first = pulse.beat("one", 7)
    assert (first.phase, first.still_seconds, first.is_warm) == ("start", 3, False)
    pulse.move(DATA)
    pulse.end_step(12, work_seconds=4.5)
    hand.wait(2)
    second = pulse.beat("one", 7)
    assert (second.step, second.phase, second.still_seconds) == (12, DATA, 2)
    assert (second.is_warm, second.steps_here, second.work_seconds) == (True, 1, 4.5)
    assert second.moves > first.moves
    assert Beat.from_json(second.to_json()) == second


class Pair:
    """The judges of two ranks over one store, with a clock by hand."""

    def __init__(self, limits: Limits, hosts: tuple[str, str] = ("one", "two")) -> None:
        self.hand, store = Hand(), HashStore()
        self.pulses = [Pulse(self.hand), Pulse(self.hand)]
        self.ranks = [
            RankStore(store, rank=rank, world_size=2, host=host) for rank, host in enumerate(hosts)
        ]
        self.judges = [
            Judge(ranks, store, pulse, limits, os.getpid(), self.hand)
            for ranks, pulse in zip(self.ranks, self.pulses)
        ]

    def pass_seconds(self, seconds: int, telling: tuple[int, ...] = (0, 1)) -> None:
        for _ in range(seconds):
            self.hand.wait(1)
            for rank in telling:
                self.judges[rank].tell()
            for rank in telling:
                self.judges[rank].look()


def in_step(pair: Pair) -> None:
    for rank, phase in enumerate((WAIT, DATA)):
        pair.pulses[rank].end_step(17, 1.0)
        pair.pulses[rank].move(phase)
    pair.pass_seconds(1)


def test_a_rank_that_stands_still_is_reported_with_its_stack(capfd: pytest.CaptureFixture[str]):
    pair = Pair(Limits.of(1800.0, 20.0))
    in_step(pair)
    pair.pass_seconds(18)
    assert pair.ranks[0].fault() is None
    pair.pass_seconds(2)
    fault = pair.ranks[0].fault()
    assert fault is not None and (fault.rank, fault.host, fault.status) == (1, "two", HUNG)
    assert fault.message.startswith("stands still in data after step 17 for 20 s while 1 waits")
    # This test is what the main thread does.
    assert "rank 1 is in stacks.py:" in fault.message and "own_stack" in fault.message
    err = capfd.readouterr().err
    assert err.startswith(f"stack of rank 1 on two (process {os.getpid()}):\n")
    assert "test_a_rank_that_stands_still_is_reported_with_its_stack" in err


def test_a_rank_zero_that_stands_still_is_named_where_it_tells_of_itself():
    pair = Pair(Limits(60.0, 20.0, 100.0))
    in_step(pair)
    pair.pulses[0].move(DATA)
    pair.pulses[1].move(WAIT)
    pair.pass_seconds(20)
    fault = pair.ranks[0].fault()
    # Of rank zero a fault is printed without its name.
    assert fault is not None and fault.rank == 0
    assert str(fault).startswith("rank 0 on one stands still in data after step 17 for 20 s")


def test_a_rank_without_a_sign_of_life_is_reported_with_its_last_place():
    pair = Pair(Limits.of(1800.0, 20.0))
    in_step(pair)
    pair.pass_seconds(20, telling=(0,))
    fault = pair.ranks[0].fault()
    assert fault is not None and (fault.rank, fault.status) == (1, HUNG)
    assert f"rank 1 on two (process {os.getpid()}) gives no sign of life" in fault.message


def test_a_rank_that_was_stopped_while_it_waited_is_named(monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []
    monkeypatch.setattr(judge, "is_stopped", lambda process: asked.append(process) or True)
    pair = Pair(Limits.of(1800.0, 20.0), hosts=("one", "one"))
    in_step(pair)
    pair.pulses[1].move(WAIT)
    pair.pass_seconds(1)
    # Whoever gives signs of life is not looked up.
    assert not asked
    pair.pass_seconds(20, telling=(0,))
    fault = pair.ranks[0].fault()
    assert fault is not None and (fault.rank, fault.status) == (1, HUNG)
    assert fault.message.startswith("stands still in communication after step 17 for 20 s while 1")
    assert "gives no sign of life: the process is stopped (SIGSTOP)" in fault.message


def test_a_rank_zero_without_a_sign_of_life_is_reported_by_the_last_rank():
    pair = Pair(Limits.of(1800.0, 0.0))
    in_step(pair)
    pair.pass_seconds(62, telling=(1,))
    assert pair.ranks[1].fault() is None
    pair.pass_seconds(3, telling=(1,))
    fault = pair.ranks[1].fault()
    assert fault is not None and fault.rank == 0
    assert fault.message == (
        "rank 0 does not answer any more: it was killed, or the connection broke; last heard of in "
        "communication after step 17"
    )


def test_a_rank_zero_that_is_stopped_is_told_as_hung_not_as_killed():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        os.kill(child.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        hand, store = Hand(), HashStore()
        here = [RankStore(store, rank=rank, world_size=2, host="one") for rank in (0, 1)]
        limits = Limits(10.0, 0.0, 10.0)
        first = Judge(here[0], store, Pulse(hand), limits, child.pid, hand)
        last = Judge(here[1], store, Pulse(hand), limits, os.getpid(), hand)
        first.tell()
        for _ in range(15):
            hand.wait(1)
            last.tell()
            last.look()
    finally:
        child.kill()
        child.wait()
    told = (
        "rank 0 does not answer any more; last heard of in start after step 0: the process is "
        "stopped (SIGSTOP), and a stopped one has no stack to show"
    )
    assert last.loss_of_rank_zero()[1] != HUNG, "the child has gone by now"
    assert here[1].fault() == RankFault(0, "one", told, HUNG)


def test_nobody_is_missed_once_a_rank_has_left():
    pair = Pair(Limits.of(1800.0, 20.0))
    in_step(pair)
    for ranks in pair.ranks:
        assert ranks.take_place()
    pair.ranks[1].leave(0)
    pair.pass_seconds(100, telling=(0,))
    assert pair.ranks[0].fault() is None


def test_a_stack_shows_the_main_thread_from_any_other():
    found: list[str] = []

    def ask_from_a_thread() -> None:
        found.append(own_stack())

    thread = threading.Thread(target=ask_from_a_thread)
    thread.start()
    thread.join()
    assert "test_a_stack_shows_the_main_thread_from_any_other" in found[0]
    assert "ask_from_a_thread" not in found[0]
    assert short_stack('  File "/a/b/c.py", line 3 in f\n  File "/d.py", line 5 in g') == (
        "c.py:3 f < d.py:5 g"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_stack_that_no_disk_takes_is_told_as_such_and_the_rank_still_tells_that_it_lives(
    monkeypatch: pytest.MonkeyPatch,
):
    def refuse() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    pair = Pair(Limits(60.0, 20.0, 100.0))
    in_step(pair)
    pair.pass_seconds(30)
    fault = pair.ranks[0].fault()
    assert fault is not None and (fault.rank, fault.status) == (1, HUNG)
    assert "No space left on device" in own_stack()


def test_a_process_alone_that_was_paused_as_a_whole_is_not_taken_for_hung(
    monkeypatch: pytest.MonkeyPatch,
):
    hand, left = Hand(), []
    pulse = Pulse(hand)
    pulse.end_step(3, 1.0)
    pulse.move(DATA)
    # Between two looks, half an hour passes; the next one is of a process that goes on.
    looks = iter([0.0, 1800.0])
    told = threading.Event()

    def now() -> float:
        hand.wait(next(looks, 3.0))
        return hand.now

    def leave(fault: RankFault) -> None:
        left.append((hand.now, fault.message))
        told.set()

    monkeypatch.setattr(os, "_exit", lambda status: None)
    watch = LoneWatch(pulse, 5.0, 5.0, leave, now)
    try:
        assert told.wait(30)
    finally:
        watch.stop()
    moment, message = left[0]
    assert moment == 100.0 + 1806.0 and "stands still in data after step 3 for 6 s" in message


def test_a_stopped_process_is_told_from_one_that_runs():
    with subprocess.Popen(["sleep", "60"]) as process:
        assert not is_stopped(process.pid)
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        assert is_stopped(process.pid)
        process.kill()
    assert not is_stopped(process.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_peer_that_does_not_acknowledge_is_named(address: str):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        near = socket.create_connection(server.getsockname()[:2])
        far = server.accept()[0]
    with near, far:
        near.send(b"heard")
        assert far.recv(8) == b"heard"
        assert unanswered_peers() == []
        drop_all(far)
        near.send(b"lost")
        # The first retransmission comes after a fifth of a second.
        while not (found := unanswered_peers()):
            pass
        assert found == [address]


def test_slow_is_who_takes_a_quarter_more_than_the_middle_of_the_others():
    assert slow_ratios({0: 1.0, 1: 1.2}) == {}
    assert slow_ratios({0: 1.0, 1: 1.5}) == {1: 1.5}
    assert slow_ratios({0: 1.0, 1: 3.0, 2: 1.0, 3: 3.0, 4: 2.0}) == {1: 2.0, 3: 2.0}
    assert slow_ratios({0: 1.0}) == {}
    assert slow_ratios({0: 0.0, 1: 0.0}) == {}


def looks(seconds_a_step: list[list[float]]) -> list[list[str] | None]:
    """What is told after windows of 10 steps in which each rank's step takes so long."""
    stragglers, done, found = Stragglers(window_seconds=30.0), [0.0] * 4, []
    for window, seconds in enumerate([[0.0] * 4, *seconds_a_step]):
        done = [before + 10 * each for before, each in zip(done, seconds)]
        beats = {
            rank: beat(WORK, 0, steps_here=10 * window, work_seconds=each, host=f"host{rank // 2}")
            for rank, each in enumerate(done)
        }
        found.append(stragglers.look(beats, 30.0 * window))
    return found[1:]


def test_a_slow_machine_is_named_once_and_again_when_it_is_slow_no_more():
    even, uneven, worse = [1.0] * 4, [1.0, 1.0, 1.0, 2.0], [1.0, 1.0, 3.0, 3.0]
    told = looks([even, uneven, uneven, uneven, even, even])
    line = "host1 is slow: rank 3, 2 s a step without waiting, 2 x the others"
    assert told == [None, None, [line], None, [], None]
    # Once is nothing.
    assert looks([uneven, even, uneven, even]) == [None] * 4
    (line,) = looks([worse, worse])[1] or []
    assert line == "host1 is slow: all 2 ranks, 3 s a step without waiting, 3 x the others"
