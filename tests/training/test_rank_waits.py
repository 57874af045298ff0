"""Waits for other ranks are counted where the host itself waits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.autograd import Variable

from rwkv_train.training.distributed.rank_waits import count_collectives, count_wait_behind_backward
from rwkv_train.training.run_clock import RunClock, Spent
from tests.training.hand_clock import Hand


def test_what_follows_the_last_gradient_counts_as_a_wait():
    hand = Hand()
    clock = RunClock(hand)
    weight = torch.ones(2, requires_grad=True)

    def reduce_like_ddp(gradient: torch.Tensor) -> None:
        # its buckets are ready with the last gradient, and it waits for their sums at the end
        hand.wait(2)
        Variable._execution_engine.queue_callback(lambda: hand.wait(5))

    weight.register_hook(reduce_like_ddp)
    loss = (3 * weight).sum()
    count_wait_behind_backward(loss, clock)
    loss.backward()
    clock.switch("training")
    assert clock.take() == Spent(7, communication=5)
    assert torch.equal(weight.grad, torch.full((2,), 3.0))


class Handle:
    """What a collective call returns that has only begun."""

    def __init__(self, hand: Hand) -> None:
        self._hand = hand

    def wait(self) -> str:
        self._hand.wait(3)
        return "done"

    def is_completed(self) -> bool:
        return True


class Backend:
    """Stands for DeepSpeed's, which has a method for every collective call."""

    def __init__(self, hand: Hand) -> None:
        self._hand = hand

    def all_reduce(self, tensor: str, async_op: bool = False) -> Handle | None:
        self._hand.wait(1)
        return Handle(self._hand) if async_op else None


def test_collective_calls_of_deepspeed_are_counted_until_that_is_ended(
    monkeypatch: pytest.MonkeyPatch,
):
    comm = pytest.importorskip("deepspeed").comm
    hand = Hand()
    clock, backend = RunClock(hand), Backend(hand)
    monkeypatch.setattr(comm, "comm", SimpleNamespace(cdb=backend))
    end = count_collectives(clock)
    assert backend.all_reduce("x") is None
    handle = backend.all_reduce("x", async_op=True)
    hand.wait(10)
    assert handle.is_completed() and handle.wait() == "done"
    assert clock.take() == Spent(15, communication=5)
    end()
    assert backend.all_reduce("x") is None
    assert clock.take() == Spent(1)
