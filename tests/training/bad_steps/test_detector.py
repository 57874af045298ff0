"""Which steps are bad, worked out by hand."""

from __future__ import annotations

import math

import pytest

from rwkv_train.config.schema import SafetyConfig
from rwkv_train.training.bad_steps.detector import FEWEST, WINDOW, Guard


@pytest.mark.parametrize(
    ("loss", "norm"),
    [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan), (2.0, math.inf), (-math.inf, 0.0)],
)
def test_a_step_that_is_not_finite_is_bad(loss: float, norm: float):
    fault = Guard(SafetyConfig()).fault_of(loss, norm)
    assert fault is not None and f"{loss:g}" in fault and f"{norm:g}" in fault


def test_without_sigma_no_finite_loss_is_bad():
    guard = Guard(SafetyConfig())
    for _ in range(50):
        guard.good(1.0)
    assert guard.fault_of(1e30, 1e30) is None


def test_a_spike_is_measured_in_deviations_of_the_last_losses():
    guard = Guard(SafetyConfig(spike_sigma=2.0))
    # ten of 1 and ten of 3: mean 2, variance 20 * 1 / 19
    losses = [1.0, 3.0] * (FEWEST // 2)
    for loss in losses[:-1]:
        guard.good(loss)
    assert guard.fault_of(100.0, 1.0) is None, "too few losses to tell"
    guard.good(losses[-1])
    limit = 2 + 2 * math.sqrt(20 / 19)
    assert guard.spike_limit() == pytest.approx(limit, rel=1e-12)
    assert guard.fault_of(limit - 1e-9, 1.0) is None
    assert "spike" in guard.fault_of(limit + 1e-9, 1.0)
    assert guard.fault_of(-50.0, 1.0) is None, "a fall is no spike"


def test_only_the_last_losses_count():
    guard = Guard(SafetyConfig(spike_sigma=3.0))
    for loss in [1000.0] * 7 + [1.0, 3.0] * (WINDOW // 2):
        guard.good(loss)
    assert guard.spike_limit() == pytest.approx(2 + 3 * math.sqrt(WINDOW / (WINDOW - 1)))


def test_a_good_step_ends_a_row_of_bad_ones():
    guard = Guard(SafetyConfig(bad_steps_before_rollback=2))
    guard.bad(1, 4)
    assert not guard.must_go_back()
    guard.good(1.0)
    guard.bad(9, 12)
    assert not guard.must_go_back()
    guard.bad(13, 16)
    assert guard.must_go_back()
    assert guard.left_out == [[1, 4], [9, 16]]


def test_zero_bad_steps_before_rollback_never_goes_back():
    guard = Guard(SafetyConfig(bad_steps_before_rollback=0))
    for step in range(99):
        guard.bad(step, step)
    assert not guard.must_go_back()


def test_going_back_restores_the_losses_and_keeps_what_was_left_out():
    guard = Guard(SafetyConfig(max_rollbacks=1))
    guard.good(1.0)
    saved = guard.state_dict()
    guard.good(2.0)
    for first in (9, 13, 17):
        guard.bad(first, first + 3)
    assert guard.may_go_back()
    guard.went_back(saved, 5, 20)
    assert guard.state_dict() == {
        "losses": [1.0],
        "bad_in_a_row": 0,
        "rollbacks": 1,
        "left_out": [[5, 20]],
    }
    assert not guard.may_go_back()


def test_its_state_goes_through_a_file_unchanged():
    guard = Guard(SafetyConfig())
    guard.good(0.1 + 0.2)
    guard.bad(3, 4)
    again = Guard(SafetyConfig())
    again.load_state_dict(guard.state_dict())
    assert again.state_dict() == guard.state_dict()
    again.load_state_dict({})
    assert again.state_dict() == Guard(SafetyConfig()).state_dict()
