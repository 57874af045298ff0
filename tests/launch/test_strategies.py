"""No strategy kills the processes of other machines when a rank fails."""

from __future__ import annotations

import os

import pytest

from rwkv_train.training.distributed.bucket_order import DataParallelStrategy
from rwkv_train.training.distributed.strategy import ZeroStrategy


@pytest.mark.parametrize("kind", [DataParallelStrategy, ZeroStrategy])
def test_a_failing_rank_kills_nobody(kind: type, monkeypatch: pytest.MonkeyPatch):
    killed: list[object] = []
    monkeypatch.setattr(os, "kill", lambda *call: killed.append(call))
    # Lightning's switch for it, and its cause.
    monkeypatch.setenv("PL_RECONCILE_PROCESS", "1")
    strategy = object.__new__(kind)
    strategy._pids, strategy._sync_dir = [1, 2], "unused"
    assert not strategy._should_run_deadlock_detection()
    strategy.reconciliate_processes("trace")
    assert killed == []
