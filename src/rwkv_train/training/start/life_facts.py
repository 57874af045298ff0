"""Tells what a start knows of its place in the time of its run."""

from __future__ import annotations

import time

from rwkv_train.report.run_lives import StartFacts
from rwkv_train.training.environment import variables
from rwkv_train.training.launchers.restarts import supervised_since
from rwkv_train.training.start.run_lock import RunLock


def life_facts(lock: RunLock, tokens: int, began: float) -> StartFacts:
    """Returns the facts of the start that began at `began`, by `time.perf_counter`.

    lock: of the folder, taken; tokens: read where the run resumes.
    """
    return StartFacts(
        tokens=tokens,
        began=time.time() - (time.perf_counter() - began),
        left_at=lock.left_at,
        supervised_since=supervised_since(variables()),
    )
