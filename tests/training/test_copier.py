"""Copies are made beside training, the newest first, and no fault of theirs ends a run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue

import pytest

from rwkv_train.checkpoint.copy_files import CopyAbandonedError
from rwkv_train.checkpoint.resume import StateFile, list_states, save_state
from rwkv_train.errors import CheckpointError
from rwkv_train.training.checkpointing.copier import Copier
from tests.checkpoint.small_states import small_state

LONG = 60.0


class Place:
    """A place that does what a test wants, and tells what it was given."""

    def __init__(self, name: str, every_steps: int | None = None) -> None:
        self.folder, self.every_steps = Path(name), every_steps
        self.newest: StateFile | None = None
        self.done: Queue[int] = Queue()
        self.begun: Queue[int] = Queue()
        self.may_end = threading.Event()
        self.may_end.set()
        self.fault: Exception | None = None
        self.is_released = self.is_claimed = False

    def claim(self) -> None:
        """Takes the place."""
        self.is_claimed = True

    def copy(self, state: StateFile, beside: object, go_on: Callable[[], bool]) -> None:
        """Takes a state, as soon as the test lets it."""
        self.begun.put(state.step)
        while not self.may_end.wait(0.005):
            if not go_on():
                raise CopyAbandonedError
        if self.fault is not None:
            raise self.fault
        self.newest = state
        self.done.put(state.step)

    def release(self) -> None:
        """Gives the place back."""
        self.is_released = True


@pytest.fixture
def state(tmp_path: Path) -> Callable[[int], Path]:
    def make(step: int) -> Path:
        path = tmp_path / f"rwkv-step-{step}.state"
        save_state(path, small_state(step))
        return path

    return make


@pytest.fixture
def copier() -> Iterator[Callable[..., Copier]]:
    made = []

    def make(*places: Place) -> Copier:
        made.append(Copier(places, lambda state: []))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.abandon()


def taken(place: Place) -> list[int]:
    return list(place.done.queue)


def test_every_place_gets_every_state_and_is_given_back(copier, state):
    first, second = Place("first"), Place("second")
    copies = copier(first, second)
    for step in (10, 20):
        copies.offer(state(step))
        assert (first.done.get(timeout=LONG), second.done.get(timeout=LONG)) == (step, step)
    copies.close(LONG)
    # The end found nothing left to copy.
    assert taken(first) == taken(second) == []
    assert first.is_released and second.is_released and first.is_claimed


def test_a_slow_copy_is_followed_by_the_newest_state_and_that_is_said_once(copier, state, capfd):
    place = Place("slow")
    copies = copier(place)
    for first in (0, 100):
        place.may_end.clear()
        copies.offer(state(first + 10))
        assert place.begun.get(timeout=LONG) == first + 10
        for step in (20, 30, 40):
            copies.offer(state(first + step))
        place.may_end.set()
        assert place.begun.get(timeout=LONG) == first + 40
        assert [place.done.get(timeout=LONG) for _ in range(2)] == [first + 10, first + 40]
    told = capfd.readouterr().err
    assert told.count("copies take longer than the time between saves") == 1
    assert "rwkv-step-20.state is not copied, the newest is" in told


def test_a_place_that_wants_few_states_gets_the_last_one_too(copier, state, capfd):
    few, all_of_them = Place("few", every_steps=25), Place("all")
    copies = copier(few, all_of_them)
    for step in (10, 20, 30, 40, 50):
        copies.offer(state(step))
        assert all_of_them.done.get(timeout=LONG) == step
    copies.close(LONG)
    assert taken(few) == [10, 40, 50]
    assert capfd.readouterr().err == ""


def test_a_run_that_went_back_is_copied_from_there(copier, state):
    place = Place("few", every_steps=25)
    copies = copier(place)
    for step in (100, 70):
        copies.offer(state(step))
        assert place.done.get(timeout=LONG) == step


def test_a_cause_is_told_once_and_its_end_too_while_other_places_go_on(copier, state, capfd):
    bad, good = Place("bad"), Place("good")
    copies = copier(bad, good)
    faults: list[Exception | None] = [
        CheckpointError("bad is full: 5.0 MB needed, 1.0 free"),
        CheckpointError("bad is full: 5.0 MB needed, 2.5 free"),
        CheckpointError("bad cannot be used: Read-only file system"),
        ZeroDivisionError("what nobody expects"),
        None,
        CheckpointError("bad is full: 7.0 MB needed, 1.0 free"),
    ]
    for number, fault in enumerate(faults):
        bad.fault = fault
        copies.offer(state(10 * number))
        assert good.done.get(timeout=LONG) == 10 * number
    copies.close(LONG)
    told = [line for line in capfd.readouterr().err.splitlines() if line]
    assert [line.split(":")[0] for line in told] == ["WARNING"] * 3 + ["note"] + ["WARNING"]
    assert told[0] == (
        "WARNING: no copy in bad: bad is full: 5.0 MB needed, 1.0 free. The run goes on; the next "
        "state tries again"
    )
    assert "Read-only" in told[1] and "what nobody expects" in told[2]
    assert told[3] == "note: copies in bad work again"
    assert taken(bad) == [40]


def test_the_end_waits_for_the_last_copy_and_not_for_ever(copier, state, capfd):
    place = Place("slow")
    copies = copier(place)
    place.may_end.clear()
    copies.offer(state(10))
    assert place.begun.get(timeout=LONG) == 10
    threading.Timer(0.2, place.may_end.set).start()
    copies.close(LONG)
    assert taken(place) == [10] and capfd.readouterr().err == ""

    dead = Place("dead")
    copies = copier(dead)
    dead.may_end.clear()
    copies.offer(state(20))
    assert dead.begun.get(timeout=LONG) == 20
    copies.close(0.1)
    told = capfd.readouterr().err
    assert "waiting for the last copies, rwkv-step-20.state to dead, at most" in told
    assert "WARNING: the last copies were not complete within" in told
    assert "rwkv-step-20.state is complete, and the next start copies it" in told
    assert taken(dead) == [] and dead.is_released


def test_a_state_that_is_gone_before_its_turn_is_passed_over(copier, state, tmp_path: Path):
    place = Place("place")
    copies = copier(place)
    copies.offer(tmp_path / "rwkv-step-5.state")
    copies.offer(state(10))
    assert place.done.get(timeout=LONG) == 10


def test_a_state_that_is_superseded_while_it_is_copied_is_no_fault_of_the_place(
    copier, state, capfd, monkeypatch: pytest.MonkeyPatch
):
    place = Place("place")
    take = place.copy

    def superseded(found: StateFile, beside: object, go_on: Callable[[], bool]) -> None:
        if found.step == 10:
            # As retention does, once there is a newer one.
            found.path.unlink()
            place.begun.put(10)
            raise CheckpointError("cannot copy rwkv-step-10.state: No such file or directory")
        take(found, beside, go_on)

    monkeypatch.setattr(place, "copy", superseded)
    copies = copier(place)
    copies.offer(state(10))
    assert place.begun.get(timeout=LONG) == 10
    copies.offer(state(20))
    assert place.done.get(timeout=LONG) == 20
    copies.close(LONG)
    assert "WARNING: no copy" not in capfd.readouterr().err


def test_a_state_that_is_there_already_is_not_copied_again(copier, state, tmp_path: Path):
    place = Place("place")
    path = state(10)
    place.newest = list_states(tmp_path)[0]
    copies = copier(place)
    copies.offer(path)
    copies.close(LONG)
    assert taken(place) == []
