"""Chunks and windows: what is refused with which advice, and what the length of a run becomes."""

from __future__ import annotations

import pytest

from rwkv_train.config.run_length import (
    global_batch,
    run_length,
    tokens_per_step,
    total_steps,
    window_len,
    windows_per_row,
)
from rwkv_train.training.progress import Progress, StepSize
from tests.config.resolving import MINIPILE, fault, found, resolved, values

ONE = "--accelerator cpu --devices 1 --micro_bsz 4 "


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("--chunk_len 513", "longer than --ctx_len 512"),
        ("--bptt_chunks 2", "--chunk_len tokens, which is not given"),
        # 512 = 8 x 64
        ("--chunk_len 64 --bptt_chunks 3", "use --bptt_chunks 2 or 4"),
        ("--chunk_len 64 --bptt_chunks 7", "use --bptt_chunks 4 or 8"),
        ("--chunk_len 64 --bptt_chunks 9", "use --bptt_chunks 8"),
        # no number of chunks of 100 fills 512
        ("--chunk_len 100 --bptt_chunks 2", "use --ctx_len 400 or 600"),
        ("--chunk_len 400 --bptt_chunks 2", "use --ctx_len 800"),
        ("--chunk_len 0", "must be at least 1"),
        ("--chunk_len 64 --bptt_chunks 0", "must be at least 1"),
        ("--rwkv_version 5 --head_qk 8 --chunk_len 64", "leave --chunk_len out"),
    ],
)
def test_what_cannot_be_is_refused_with_advice(line, advice):
    assert advice in fault(ONE + line)


def test_states_are_not_trained_by_truncated_backpropagation():
    base = found("weights")
    tune = "--train_type states --load_partial 1 "
    assert "first window" in fault(ONE + tune + "--chunk_len 64 --bptt_chunks 2", base)
    # the whole row is one window: exact
    assert (
        values(ONE + tune + "--chunk_len 64 --bptt_chunks 8", "bptt_chunks", discovered=base) == 8
    )


def test_chunks_alone_change_nothing_but_memory():
    plain, _ = resolved(ONE)
    chunked, _ = resolved(ONE + "--chunk_len 100")
    assert run_length(chunked) == run_length(plain)


def test_steps_windows_and_mini_epochs_count_tokens():
    config, lines = resolved(ONE + "--chunk_len 64 --bptt_chunks 2 --exit_tokens 1000000")
    assert (window_len(config), windows_per_row(config)) == (128, 4)
    assert (global_batch(config), tokens_per_step(config)) == (4, 512)
    assert total_steps(config) == 1954  # ceil(1000000 / 512)
    # 10080 groups of 4 samples, 4 steps each: 40320 samples
    assert config.train.epoch_steps == 40320
    assert any("mini-epochs of 40320 samples in batches of 4, 4 steps each" in s for s in lines)


def test_the_data_has_as_many_mini_epochs_read_in_windows_as_read_whole():
    line = ONE + "--exit_tokens 0 --epoch_count"
    for windows in ("", "--chunk_len 64 --bptt_chunks 2"):
        assert values(f"{ONE} --exit_tokens 0 {windows}", "epoch_count") == 2926181 // 40320
    assert values(f"{line} 3 --chunk_len 64 --bptt_chunks 2", "epoch_count") == 3


def test_the_length_tells_the_samples_of_a_step():
    config, _ = resolved(ONE + "--chunk_len 64 --bptt_chunks 2", MINIPILE)
    length = run_length(config)
    assert [length.samples(step) for step in (0, 3, 4, 7, 8)] == [
        (1, 4),
        (1, 4),
        (5, 8),
        (5, 8),
        (9, 12),
    ]


def test_a_place_inside_rows_stays_there_when_a_window_ends_there():
    fours, twos = StepSize(4 * 8, 32, windows=4), StepSize(4 * 16, 32, windows=2)
    assert [fours.place(step, twos) for step in (0, 2, 4, 6, 8)] == [0, 1, 2, 3, 4]
    assert [twos.place(step, fours) for step in (0, 1, 2, 3)] == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        # no window of half a row ends after a quarter: on to the next rows
        (StepSize(4 * 16, 32, windows=2), [2, 2]),
        (StepSize(4 * 32, 32), [1, 1]),
        # other rows: 4 samples of the group are seen, 8 make a group now
        (StepSize(8 * 8, 32, windows=4), [4, 4]),
        (StepSize(2 * 8, 32, windows=4), [8, 8]),
        # a row is another one, though as many tokens are read
        (StepSize(2 * 16, 64, windows=4), [4, 4]),
    ],
)
def test_a_place_inside_rows_becomes_their_end_otherwise(now, expected):
    fours = StepSize(4 * 8, 32, windows=4)
    assert [fours.place(step, now) for step in (1, 3)] == expected
    moved = Progress(step=3, ramp_begin=0).with_steps(fours, now)
    assert (moved.step, moved.ramp_begin) == (expected[1], 0)
