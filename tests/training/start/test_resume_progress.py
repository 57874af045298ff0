"""Counters to resume with: of bare weights, of a state, of a state of another run's settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rwkv_train.config.run_length import run_length
from rwkv_train.errors import CheckpointError
from rwkv_train.training.progress import Progress
from rwkv_train.training.start.resume_point import Fresh, FromState
from rwkv_train.training.start.resume_progress import restore_carried, resume_progress
from tests.config.resolving import resolved

# 4 rows of 512 tokens a step, mini-epochs of 10 steps
LINE = "--accelerator cpu --devices 1 --micro_bsz 4 --epoch_steps 10 --warmup_steps 3 "
WINDOWS = "--chunk_len 128 --bptt_chunks 2 "


def setting(line: str = ""):
    config, _ = resolved(LINE + line)
    return config, run_length(config)


def state_point(**more: Any) -> FromState:
    state = {
        "step": 12,
        "tokens_per_step": 2048,
        "ctx_len": 512,
        "windows": 1,
        "optimizer": "adamw",
        "optimizer_steps": 12,
        "moments": {"exp_avg": {"w": 1}},
        **more,
    }
    return FromState(Path("rwkv-1.state"), 1, {}, state, Path(), notes=("first",))


def test_bare_weights_stand_for_the_last_step_of_their_mini_epoch():
    config, length = setting("--epoch_begin 3")
    point, progress = resume_progress(Fresh(), config, length)
    # the optimizer is empty: its ramp begins here
    assert (point, progress) == (Fresh(), Progress(step=30, ramp_begin=30))


def test_bare_weights_resume_at_the_beginning_of_rows():
    # two windows a row, so that the 15th step is in the middle of rows
    config, length = setting("--epoch_begin 3 " + WINDOWS)
    length = replace(length, epoch_steps=5)
    assert length.windows == 2
    _, progress = resume_progress(Fresh(), config, length)
    assert progress == Progress(step=16, ramp_begin=16)


def test_a_state_of_the_same_settings_continues_exactly():
    config, length = setting()
    before = state_point()
    point, progress = resume_progress(before, config, length)
    assert point is before and progress == Progress(step=12)


def test_an_old_state_without_the_keys_had_steps_as_now():
    config, length = setting()
    point = state_point()
    for key in ("tokens_per_step", "ctx_len", "windows"):
        del point.state[key]
    assert resume_progress(point, config, length).progress == Progress(step=12)


@pytest.mark.parametrize(
    ("micro_bsz", "step", "place"),
    # 48 rows: 16 steps of 3, 9.6 of 5
    [(3, 16, "the same place in the data"), (5, 10, "after the samples it was in")],
)
def test_another_batch_means_other_steps_and_a_note(micro_bsz: int, step: int, place: str):
    config, length = setting(f"--micro_bsz {micro_bsz}")
    before = state_point()
    point, progress = resume_progress(before, config, length)
    assert progress.step == step
    assert point.notes == (
        "first",
        f"a step had 2,048 tokens and has {512 * micro_bsz:,} now: step 12 becomes step {step}, "
        + place,
    )
    assert before.notes == ("first",), "a resume point does not change"


def test_another_optimizer_starts_empty_and_repeats_the_warmup():
    config, length = setting("--optimizer muon")
    before = state_point()
    point, progress = resume_progress(before, config, length)
    assert progress == Progress(step=12, ramp_begin=12)
    assert (point.state["moments"], point.state["optimizer_steps"]) == ({}, 0)
    assert "moments of adamw, this run has muon" in point.notes[1]
    assert "the warmup of 3 steps is repeated" in point.notes[1]
    assert point.describe(12) == "rwkv-1.state: continuation at step 12, empty optimizer"
    assert before.state["moments"], "a resume point does not change"


def test_states_are_carried_only_into_the_middle_of_rows():
    config, length = setting(WINDOWS)
    saved = {"position": 256, "states": {number: [] for number in range(25, 29)}}
    point = state_point(windows=2, tokens_per_step=1024, step=13, carried=saved)
    # step 13 reads the second halves of the rows of the seventh group
    assert length.samples(13) == (25, 28)
    restore_carried(point, config, length, Progress(step=13))
    restore_carried(point, config, length, Progress(step=14))
    with pytest.raises(CheckpointError, match="lacks the carried state of sample 29"):
        restore_carried(point, config, length, Progress(step=15))
