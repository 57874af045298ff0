"""A save that takes longer than the timeout of collective calls."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rwkv_train.training.distributed import collectives
from rwkv_train.training.distributed.collectives import wait_for_rank_zero


def test_ranks_wait_for_a_long_save_in_many_short_calls(monkeypatch: pytest.MonkeyPatch):
    answers, waited, calls = iter([False, False, True]), [], []

    def gather(strategy: object, own: object) -> list[object]:
        calls.append(own)
        return [own, False]

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        return next(answers)

    monkeypatch.setattr(collectives, "gather_objects", gather)
    wait_for_rank_zero(SimpleNamespace(is_global_zero=True), wait)
    assert calls == [False, False, True]
    # far below every timeout that a run can be given
    assert waited == [5.0, 5.0, 5.0]


def test_the_other_ranks_do_not_ask_their_own_work(monkeypatch: pytest.MonkeyPatch):
    from_rank_zero = iter([False, True])
    monkeypatch.setattr(collectives, "gather_objects", lambda *_: [next(from_rank_zero), False])
    wait_for_rank_zero(SimpleNamespace(is_global_zero=False), lambda _: pytest.fail("not here"))
    assert next(from_rank_zero, None) is None
