"""Which steps are bad, worked out by hand."""

from __future__ import annotations

import math

import pytest

from rwkv_train.config.machine_schema import SafetyConfig
from rwkv_train.training.bad_steps.detector import FEWEST, WINDOW, SpikeDetector


@pytest.mark.parametrize(
    ("loss", "norm"),
    [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan), (2.0, math.inf), (-math.inf, 0.0)],
)
def test_a_step_that_is_not_finite_is_bad(loss: float, norm: float):
    fault = SpikeDetector(SafetyConfig()).fault_of(loss, norm)
    assert fault is not None and f"{loss:g}" in fault and f"{norm:g}" in fault


def test_without_sigma_no_finite_loss_is_bad():
    detector = SpikeDetector(SafetyConfig())
    for _ in range(50):
        detector.record_good(1.0)
    assert detector.fault_of(1e30, 1e30) is None


def test_a_spike_is_measured_in_deviations_of_the_last_losses():
    detector = SpikeDetector(SafetyConfig(spike_sigma=2.0))
    # ten of 1 and ten of 3: mean 2, variance 20 * 1 / 19
    losses = [1.0, 3.0] * (FEWEST // 2)
    for loss in losses[:-1]:
        detector.record_good(loss)
    assert detector.fault_of(100.0, 1.0) is None, "too few losses to tell"
    detector.record_good(losses[-1])
    limit = 2 + 2 * math.sqrt(20 / 19)
    assert detector.spike_limit() == pytest.approx(limit, rel=1e-12)
    assert detector.fault_of(limit - 1e-9, 1.0) is None
    assert "spike" in detector.fault_of(limit + 1e-9, 1.0)
    assert detector.fault_of(-50.0, 1.0) is None, "a fall is no spike"


def test_only_the_last_losses_count():
    detector = SpikeDetector(SafetyConfig(spike_sigma=3.0))
    for loss in [1000.0] * 7 + [1.0, 3.0] * (WINDOW // 2):
        detector.record_good(loss)
    assert detector.spike_limit() == pytest.approx(2 + 3 * math.sqrt(WINDOW / (WINDOW - 1)))


def test_a_good_step_ends_a_row_of_bad_ones():
    detector = SpikeDetector(SafetyConfig(bad_steps_before_rollback=2))
    detector.record_bad(1, 4)
    assert not detector.must_roll_back()
    detector.record_good(1.0)
    detector.record_bad(9, 12)
    assert not detector.must_roll_back()
    detector.record_bad(13, 16)
    assert detector.must_roll_back()
    assert detector.skipped == [[1, 4], [9, 16]]


def test_zero_bad_steps_before_rollback_never_goes_back():
    detector = SpikeDetector(SafetyConfig(bad_steps_before_rollback=0))
    for step in range(99):
        detector.record_bad(step, step)
    assert not detector.must_roll_back()


def test_going_back_restores_the_losses_and_keeps_what_was_left_out():
    detector = SpikeDetector(SafetyConfig(max_rollbacks=1))
    detector.record_good(1.0)
    saved = detector.state_dict()
    detector.record_good(2.0)
    for first in (9, 13, 17):
        detector.record_bad(first, first + 3)
    assert detector.may_roll_back()
    detector.rolled_back(saved, 5, 20)
    assert detector.state_dict() == {
        "losses": [1.0],
        "bad_in_a_row": 0,
        "bad_span": 0,
        "rollbacks": 1,
        "left_out": [[5, 20]],
    }
    assert not detector.may_roll_back()


def test_an_empty_step_is_neither_good_nor_bad():
    detector = SpikeDetector(SafetyConfig(bad_steps_before_rollback=2))
    detector.record_empty()
    assert (detector.bad_in_a_row, detector.bad_span) == (0, 0)
    detector.record_bad(1, 4)
    detector.record_empty()
    detector.record_empty()
    assert not detector.must_roll_back()
    detector.record_bad(13, 16)
    # It must go back to before the first of them.
    assert detector.must_roll_back() and detector.bad_span == 4
    assert detector.state_dict()["losses"] == [] and detector.skipped == [[1, 4], [13, 16]]
    detector.record_good(1.0)
    assert (detector.bad_in_a_row, detector.bad_span) == (0, 0)


def test_its_state_goes_through_a_file_unchanged():
    detector = SpikeDetector(SafetyConfig())
    detector.record_good(0.1 + 0.2)
    detector.record_bad(3, 4)
    again = SpikeDetector(SafetyConfig())
    again.load_state_dict(detector.state_dict())
    assert again.state_dict() == detector.state_dict()
    again.load_state_dict({})
    assert again.state_dict() == SpikeDetector(SafetyConfig()).state_dict()
