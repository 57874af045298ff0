"""Whatever is printed counts the steps that are done: the third one is step 3 everywhere."""

from __future__ import annotations

import pytest

from rwkv_train.training.progress import Progress
from rwkv_train.training.reporting.console import Console
from rwkv_train.training.reporting.header import _saved
from rwkv_train.training.reporting.records import (
    BadStepRecord,
    EmptyStepRecord,
    EpochRecord,
    RollbackRecord,
    StepRecord,
)
from rwkv_train.training.reporting.validation_record import ValidationRecord
from tests.config.resolving import MINIPILE, resolved


def test_the_third_step_is_step_3_in_every_line(capsys: pytest.CaptureFixture[str]):
    console = Console(0, 6, bar=False)
    # Records, as lines of metrics.jsonl, count from 0.
    step = StepRecord(2, 1.0, 1e-3, 0.0, 1.0, 96, 1.0, None)
    console.on_step(step, Progress())
    console.on_epoch(EpochRecord(0, 0, 1.0, step))
    console.on_bad_step(BadStepRecord(2, "loss nan", [9, 12], [], 96))
    console.on_empty_step(EmptyStepRecord(2, [9, 12], 96))
    console.on_rollback(RollbackRecord(2, "rwkv-step-1.state", [5, 12], 96))
    console.on_validation(ValidationRecord(2, 1.0, 9.0, None, ()))
    console.on_save_postponed(3)
    console.close()
    lines = [line for line in capsys.readouterr().out.splitlines() if "step 3" in line]
    assert [line.split(":")[0] for line in lines] == [
        "mini-epoch 0",
        "WARNING",
        "step 3 skipped, empty",
        "WARNING",
        "validation after step 3",
        "the save after step 3 waits until steps are good again",
    ]


@pytest.mark.parametrize(
    ("every", "words"),
    [
        (0, "only the last is saved"),
        (1, "each is saved"),
        (2, "one of 2 is saved, the first and the last always"),
        (3, "one of 3 is saved, the first and the last always"),
    ],
)
def test_which_mini_epochs_are_saved_is_said_in_a_sentence(every: int, words: str):
    assert _saved(every) == words


def test_a_run_on_one_cpu_process_is_not_told_the_obvious():
    _, lines = resolved("", MINIPILE)
    for obvious in ("devices 1", "precision fp32", "strategy single_device", "vocab_size"):
        assert not any(line.startswith(obvious) for line in lines), lines


def test_a_mini_epoch_tells_where_its_time_went_and_doubts_what_cannot_be(
    capsys: pytest.CaptureFixture[str],
):
    console = Console(0, 10, bar=False)
    for mfu, seconds, saved in ((1.2, 3.0, 0.5), (1.4, 1.0, 0.0), (0.2, 1.0, 0.0)):
        step = StepRecord(
            *(2, 1.0, 1e-3, 0.0, 1.0, 96, 1.0, None),
            seconds=seconds,
            # 0.5 % of the time is no news; of ranks nothing is known
            **{"data_share": 0.005, "communication_share": None, "save_share": saved},
            mfu=mfu,
        )
        console.on_step(step, Progress())
    for _ in range(2):
        console.on_epoch(EpochRecord(0, 0, 1.0, step))
    doubt, line, empty = capsys.readouterr().out.splitlines()
    assert "--measure_rate 1" in doubt
    # the middle MFU; 1.5 of 5 s
    assert line.endswith("kt/s, MFU 120.0%, saving 30%") and empty.endswith("kt/s")
