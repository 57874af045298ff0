"""Where a run is when its steps change: numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from rwkv_train.training.progress import Progress, StepSize

# 4 rows of 8 tokens
WHOLE_ROWS = StepSize(tokens=32, ctx_len=8)
# 4 rows of 8 tokens in two windows of 4
HALF_ROWS = StepSize(tokens=16, ctx_len=8, windows=2)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        # 3 steps are 12 rows: two steps of 6 rows, and two and a half of 5
        (StepSize(48, 8), 2),
        (StepSize(40, 8), 3),
        # 96 tokens are 6 rows of 16, three steps of two of them
        (StepSize(32, 16), 3),
        # 12 rows as windows of 4 tokens of 4 rows: two steps for each group
        (HALF_ROWS, 6),
    ],
)
def test_whole_rows_are_counted_on_in_other_steps(now: StepSize, expected: int):
    assert WHOLE_ROWS.place(3, now) == expected


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        # 3 steps are one group of 4 rows and the first half of the next: 12 tokens a row
        (StepSize(8, 8, windows=4), 6),
        # the second group cannot stop in its middle: both groups count as read
        (WHOLE_ROWS, 2),
        # 8 rows are four groups of 2, with two windows each
        (StepSize(8, 8, windows=2), 8),
        # 64 tokens are 4 rows of 16, which are two groups of 2 in one window
        (StepSize(32, 16), 2),
    ],
)
def test_a_place_inside_rows_stays_only_where_a_window_begins(now: StepSize, expected: int):
    assert HALF_ROWS.place(3, now) == expected


@pytest.mark.parametrize("now", [WHOLE_ROWS, HALF_ROWS, StepSize(40, 8), StepSize(24, 12)])
def test_no_sample_is_read_twice_and_the_start_stays_the_start(now: StepSize):
    for step in range(20):
        for before in (WHOLE_ROWS, HALF_ROWS):
            assert before.place(step, now) * now.tokens >= step * before.tokens
    assert WHOLE_ROWS.place(0, now) == HALF_ROWS.place(0, now) == 0


def test_the_ramp_moves_with_the_step_and_the_rest_stays():
    progress = Progress(
        step=6, ramp_begin=3, epoch_loss_sum=7.5, epoch_loss_steps=3, best_val_loss=2.0
    )
    # 24 rows are 5 steps of 5 rows at most begun, and 12 rows 3 of them
    moved = progress.with_steps(WHOLE_ROWS, StepSize(40, 8))
    assert moved == Progress(5, 3, 7.5, 3, 2.0)
    assert progress.with_steps(WHOLE_ROWS, WHOLE_ROWS) is progress


def test_a_skipped_step_counts_and_leaves_the_mean_loss_alone():
    progress = Progress()
    progress.add_loss(2.0)
    progress.skip_step()
    progress.add_loss(4.0)
    assert (progress.step, progress.epoch_loss) == (3, 3.0)
    progress.begin_epoch()
    assert (progress.step, progress.epoch_loss) == (3, 0.0)


def test_the_best_loss_is_that_of_the_same_data():
    progress = Progress()
    assert not progress.improves(math.nan, "a") and not progress.improves(math.inf, "a")
    assert progress.improves(3.0, "a") and not progress.improves(3.0, "a")
    # other text: its losses cannot be compared, so that its first one counts
    assert progress.improves(5.0, "b") and progress.best_val_data == "b"


def test_a_state_without_the_newer_counters_can_be_read():
    assert Progress.from_dict({"step": 7, "weights": {}}) == Progress(step=7)
    progress = Progress(3, 1, 2.5, 2, 1.5, "a")
    assert Progress.from_dict(progress.to_dict()) == progress
