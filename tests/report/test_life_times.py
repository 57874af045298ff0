"""The time of a run's life is added up over its starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkv_train.goodput import goodput, no_seconds
from rwkv_train.report.life_times import life_seconds, life_table, tells_pauses
from rwkv_train.report.run_history import RunHistory
from tests.report.made_runs import make_run, start, step_record


def history_of(folder: Path, *records: dict) -> RunHistory:
    """The history of a run with these records."""
    history = RunHistory(make_run(folder, records))
    history.update()
    return history


def test_training_is_what_no_pause_start_or_loss_has_taken(tmp_path: Path):
    history = history_of(
        tmp_path,
        {"step": 0, "tokens": 0, "start_up_seconds": 10.0, "lost_seconds": 0.0},
        step_record(0, seconds=20.0, data_share=0.25, save_share=0.0, validation_share=0.0),
        {"step": 1, "tokens": 2048, "start_up_seconds": 5.0, "lost_seconds": 15.0},
        step_record(
            1,
            **{"seconds": 40.0, "data_share": 0.0, "communication_share": 0.1},
            **{"save_share": 0.1, "validation_share": 0.15},
        ),
        {
            **{"step": 1, "tokens": 4096, "ending_seconds": 10.0},
            **{"save_share": 0.6, "validation_share": 0.3},
        },
    )
    seconds = life_seconds(history)
    assert seconds == pytest.approx(
        {
            **no_seconds(),
            "training": 15 + 26,
            "communication": 4,
            "data": 5,
            "save": 4 + 6,
            "validation": 6 + 3,
            "restart": 15,
            "ending": 1,
            "lost": 15,
        }
    )
    assert goodput(seconds) == pytest.approx(45 / 100)
    table = life_table(history, [start(), start(1)], None)
    assert table["rows"][:2] == [["goodput", "45 s", "45.0%"], ["training", "41 s", "41.0%"]]
    assert table["rows"][-1] == ["together", "1 min 40 s", "100.0%"]


def test_an_older_run_tells_the_time_of_its_steps_alone(tmp_path: Path):
    history = history_of(tmp_path, step_record(0, tokens_per_second=1024.0))
    assert not tells_pauses(history)
    table = life_table(history, [start()], None)
    assert table["rows"] == [["training", "2 s", "100.0%"], ["together", "2 s", "100.0%"]]
    assert "not told" in table["note"]


def test_the_calendar_counts_from_the_first_start_if_that_can_be_read(tmp_path: Path):
    history = history_of(tmp_path, step_record(0))
    # 2026-11-30T09:00:00+00:00
    began = 1_796_029_200
    table = life_table(history, [start(), start(1)], began + 7260.0)
    assert table["rows"][-1] == ["by the calendar, 2 starts", "2 h 01 min", ""]
    for starts in ([], [{}], [{"time": "yesterday"}], [{"time": 3}]):
        assert life_table(history, starts, began)["rows"][-1][0] == "together"


def test_a_run_without_steps_has_no_goodput(tmp_path: Path):
    assert goodput(life_seconds(history_of(tmp_path))) is None
