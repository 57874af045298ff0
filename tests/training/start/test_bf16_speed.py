"""What a run on a CPU says of bf16: measured, told once, and nothing is decided by it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from rwkv_train.training.start import bf16_speed


@pytest.mark.parametrize(
    ("precision", "speed", "words"),
    [
        ("bf16", 0.02, ["asked for", "0.02 times", "--precision fp32"]),
        ("bf16", 0.9, []),
        ("bf16", 7.0, []),
        ("fp32", 6.98, ["7.0 times", "--precision bf16"]),
        ("fp32", 1.2, []),
        ("fp32", 0.1, []),
    ],
)
def test_only_a_clear_difference_to_what_runs_is_told(monkeypatch, precision, speed, words):
    monkeypatch.setattr(bf16_speed, "bf16_speed", lambda: speed)
    notes = bf16_speed.bf16_notes(SimpleNamespace(accelerator="cpu", precision=precision))
    assert len(notes) == bool(words)
    assert all(word in notes[0] for word in words)


def test_on_a_gpu_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(bf16_speed, "bf16_speed", lambda: pytest.fail("measured"))
    assert bf16_speed.bf16_notes(SimpleNamespace(accelerator="gpu", precision="bf16")) == []


def test_the_measurement_is_a_ratio_of_times_and_draws_no_random_number(monkeypatch):
    times = iter([8.0, 6.0, 7.0, 9.0, 3.0, 2.0, 4.0, 5.0])
    dtypes = []

    def seconds(x, weight):
        dtypes.append(x.dtype)
        return next(times)

    # Beside the memory of a measurement that is made once per process.
    measured = bf16_speed.bf16_speed.__wrapped__
    state = torch.get_rng_state()
    assert measured() > 0
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(bf16_speed, "_seconds", seconds)
    assert measured() == 3.0
    assert dtypes == [torch.float32] * 4 + [torch.bfloat16] * 4
