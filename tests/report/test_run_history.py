"""metrics.jsonl is read as it grows, whole or in parts, whatever lies in it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rwkv_train.report import run_history
from rwkv_train.report.run_history import KeptRecords, RunHistory
from tests.report.made_runs import everything, make_run, step_record, validation


def read(folder: Path) -> RunHistory:
    """The history of a folder, read at once."""
    history = RunHistory(folder)
    history.update()
    return history


def counts(history: RunHistory) -> dict[str, int]:
    """Number of events of each kind."""
    return {name: kept.count for name, kept in history.events.items() if kept.count}


EVENTS = {
    **{"skipped": 3, "rollback": 1, "val_loss": 4, "samples": 4, "eval": 4},
    **{"grad_norms": 19, "start_up_seconds": 1, "ending_seconds": 1},
}


def test_every_kind_of_record_is_taken(tmp_path: Path):
    history = read(make_run(tmp_path, everything(400)))
    # Step 120, which has norms of groups, is among the skipped ones.
    assert (history.steps, counts(history)) == (397, EVENTS)
    assert history.last is not None and history.last["step"] == 399
    # A validation names its step alone.
    assert [r["tokens"] for r in history.events["val_loss"].records] == [
        n * 2048 for n in (100, 200, 300, 400)
    ]


def test_reading_on_is_as_reading_all_at_once(tmp_path: Path):
    lines = "".join(json.dumps(r) + "\n" for r in everything(300))
    path = tmp_path / "metrics.jsonl"
    history = RunHistory(tmp_path)
    history.update()
    for end in (10, 5_000, 5_001, 60_000, len(lines)):
        path.write_text(lines[:end])
        history.update()
    whole = read(tmp_path)
    assert (history.steps, counts(history)) == (whole.steps, counts(whole)) != (0, {})
    np.testing.assert_array_equal(history.bins.means("loss"), whole.bins.means("loss"))


def test_a_file_that_a_resumed_run_has_cut_is_read_anew(tmp_path: Path):
    history = read(make_run(tmp_path, everything(300)))
    make_run(tmp_path, (step_record(n) for n in range(50)))
    history.update()
    assert (history.steps, counts(history)) == (50, {})


def test_damaged_lines_are_left_out_and_the_others_are_not(tmp_path: Path):
    good = [json.dumps(step_record(n)) for n in range(3)]
    strange = json.dumps(step_record(3, grad_norm=float("nan"), lr=0.1, mfu="fast", memory=[1]))
    bad = ["{", "[1, 2]", '{"step": 1, "loss": "x", "tokens": 5}', "\x00\xff", '{"step": "1"}']
    text = "\n".join([*good[:2], *bad, strange, good[2], '{"step": 4, "lo'])
    (tmp_path / "metrics.jsonl").write_text(text, errors="surrogateescape")
    history = read(tmp_path)
    assert history.steps == 4 and not history.bins.knows("mfu")
    assert np.isnan(history.bins.means("grad_norm")[2])


def test_of_a_long_file_a_part_is_read_and_no_event_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_run(tmp_path, everything(3000))
    whole = read(tmp_path)
    monkeypatch.setattr(run_history, "_BLOCK_BYTES", 20_000)
    monkeypatch.setattr(run_history, "_READ_WHOLE_BYTES", 100_000)
    part = read(tmp_path)
    assert part.steps == whole.steps == 2997 and part.read_share < 0.3
    # Norms of groups are part of steps.
    for name in EVENTS.keys() - {"grad_norms"}:
        assert part.events[name].records == whole.events[name].records, name
    assert part.last == whole.last
    total = part.bins.total("whole_seconds") / part.read_share
    assert total == pytest.approx(whole.bins.total("whole_seconds"), rel=0.05)


def test_a_step_that_lasts_counts_by_its_seconds(tmp_path: Path):
    steps = [
        step_record(0, seconds=1.0, data_share=0.5),
        step_record(1, seconds=3.0, data_share=0.1, save_share=0.2),
        # An older record: 2048 tokens at 1024 a second.
        step_record(2, tokens_per_second=1024.0),
    ]
    bins = read(make_run(tmp_path, steps)).bins
    assert bins.total("whole_seconds") == pytest.approx(1 + 3 + 2)
    assert bins.total("data_seconds") == pytest.approx(0.5 + 0.3)
    assert bins.total("save_seconds") == pytest.approx(0.6)


def test_few_records_of_many_are_kept_and_all_are_counted():
    kept = KeptRecords(10)
    for n in range(1000):
        kept.add({"step": n})
    steps = [r["step"] for r in kept.records]
    assert kept.count == 1000 and len(steps) <= 20 and steps == sorted(steps)
    assert steps[0] == 0 and steps[-1] == 999 and kept.spread(2) == [{"step": 0}, {"step": 999}]


def test_validations_before_any_step_stand_at_the_beginning(tmp_path: Path):
    history = read(make_run(tmp_path, [validation(-1), step_record(0)]))
    assert [r["tokens"] for r in history.events["val_loss"].records] == [0]
