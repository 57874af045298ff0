"""The run's clock: every moment has one purpose, and all of them add up to the wall time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rwkv_train.training.run_clock import RunClock, Spent
from tests.training.hand_clock import Hand


def test_purposes_and_the_rest_add_up_to_the_interval():
    hand = Hand()
    clock = RunClock(hand)
    hand.wait(1)
    with clock.spending("data"):
        hand.wait(2)
    hand.wait(3)
    with clock.waiting_for_ranks():
        hand.wait(4)
    with clock.spending("validation"):
        hand.wait(5)
        # the best weights are saved in the middle of it
        with clock.spending("save"):
            hand.wait(6)
        hand.wait(7)
    spent = clock.take()
    assert spent == Spent(seconds=28, data=2, communication=4, save=6, validation=12)
    assert spent.seconds - sum(spent[1:]) == 1 + 3
    assert spent.share("save") == pytest.approx(6 / 28)


def test_the_next_interval_begins_where_the_last_was_taken():
    hand = Hand()
    clock = RunClock(hand)
    with clock.spending("save"):
        hand.wait(3)
        assert clock.take() == Spent(3, save=3)
        hand.wait(2)
    hand.wait(1)
    assert clock.take() == Spent(3, save=2)
    assert clock.take() == Spent()
    assert clock.take().share("data") == 0
    assert clock.total("save") == 5
    clock.start()
    assert clock.total("save") == 0


def test_a_pause_that_waits_for_ranks_is_a_pause():
    hand = Hand()
    clock = RunClock(hand)
    with clock.spending("save"), clock.waiting_for_ranks():
        hand.wait(4)
    assert clock.take() == Spent(4, save=4)


def test_an_error_inside_ends_the_purpose_too():
    hand = Hand()
    clock = RunClock(hand)
    with pytest.raises(StopIteration), clock.spending("data"):
        hand.wait(1)
        raise StopIteration
    hand.wait(1)
    assert clock.take() == Spent(2, data=1)


def test_a_label_is_opened_around_what_is_counted():
    seen = []

    @contextmanager
    def label(purpose: str) -> Iterator[None]:
        seen.append(purpose)
        yield
        seen.append(f"/{purpose}")

    clock = RunClock()
    clock.label = label
    with clock.spending("data"):
        seen.append("inside")
    assert seen == ["data", "inside", "/data"]
