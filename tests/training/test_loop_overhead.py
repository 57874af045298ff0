"""What the training loop does in a step besides forward, backward, norm and optimizer: counted."""

from __future__ import annotations

import cProfile
from collections.abc import Callable

import pytest

from benchmarks.loop import PARTS, WARM_UP, StepClocks, install

# Calls of Python and of C functions; some milliseconds, in a step of the demo less than 3 %.
MOST_CALLS = 4_500
# Each waits for the device: the loss and the norm, read together by the veto.
READS = ("item", "tolist", "numpy", "__bool__", "__float__", "__int__")
STEPS = 6


def test_the_loop_reads_the_device_once_a_step_and_makes_few_calls(
    run_training: Callable[..., int], monkeypatch: pytest.MonkeyPatch
):
    profile = cProfile.Profile()
    clocks = StepClocks(profile)
    install(clocks, monkeypatch.setattr)
    assert run_training(max_steps=WARM_UP + STEPS, epoch_steps=100, wkv_backend="auto") == 0
    assert len(clocks.steps) == WARM_UP + STEPS - 1
    for step in clocks.steps:
        assert set(step) == {"step", *PARTS}
        assert sum(step[part] for part in PARTS) < step["step"]
    counts = {str(entry.code): entry.callcount for entry in profile.getstats()}
    reads = {
        name: count
        for name, count in counts.items()
        if any(f"'{read}' of 'torch" in name for read in READS)
    }
    assert sum(reads.values()) <= STEPS, reads
    assert sum(counts.values()) <= STEPS * MOST_CALLS, sum(counts.values()) / STEPS
