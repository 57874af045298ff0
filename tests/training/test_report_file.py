"""A run renews report.html, which costs little and never ends it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rwkv_train.report import page_file
from rwkv_train.report.run_records import read_metrics
from rwkv_train.training.reporting.report_file import ReportFile
from tests.training.runs import loss_steps

Run = Callable[..., int]


def page_data(folder: Path) -> dict[str, Any]:
    """The contents of a run's page."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    return json.loads(text.partition('id="report-data">')[2].partition("</script>")[0])


def chart(data: dict[str, Any], name: str) -> dict[str, Any]:
    """A chart of a page."""
    blocks = [block for section in data["sections"] for block in section["blocks"]]
    return next(block for block in blocks if block.get("name") == name)


def test_a_run_with_everything_and_its_resumption_have_a_page(
    run_training: Run, corpus: Path, tmp_path: Path
):
    out = tmp_path / "out"
    asked = {"report": 1, "val_data_file": f"{corpus}_val", "sample_every": 4, "sample_tokens": 3}
    assert run_training(max_steps=6, **asked) == 0
    assert run_training(max_steps=9, lr_init="2e-3", **asked) == 0
    data, records = page_data(out), read_metrics(out)
    assert data["title"].startswith("out: RWKV-6, 2 layers, width 32, context 32")
    losses = [r["loss"] for r in records if "loss" in r]
    training, validation = chart(data, "loss")["series"]
    assert training["values"] == pytest.approx(losses, rel=1e-4) and len(losses) == 9
    # The last record too: the page is renewed when the run ends.
    held_out = [r["val_loss"] for r in records if "val_loss" in r]
    assert validation["values"] == pytest.approx(held_out, rel=1e-4) and len(held_out) >= 2
    (mark,) = data["marks"]
    assert (mark["kind"], mark["step"]) == ("start", 6) and "lr_init" in mark["text"]
    titles = [section["title"] for section in data["sections"]]
    assert {"Text samples", "Configuration", "Starts and environment"} <= set(titles)
    assert "There is no reference for this configuration" in json.dumps(data)


def test_a_page_that_cannot_be_written_is_told_once_and_ends_nothing(
    run_training: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page_file, "write_atomically", full)
    assert run_training(report=1, max_steps=3, epoch_steps=1) == 0
    err = capsys.readouterr().err
    assert err.count("WARNING: report.html cannot write: No space left on device") == 1
    assert loss_steps(tmp_path / "out") == [0, 1, 2]


def test_without_the_flag_there_is_no_page(run_training: Run, tmp_path: Path):
    assert run_training(report=0, max_steps=1) == 0
    assert not (tmp_path / "out" / "report.html").exists()


def test_pages_take_at_most_a_fiftieth_of_the_time(tmp_path: Path):
    now, written = [0.0], []

    class SlowPage:
        def write(self) -> None:
            written.append(now[0])
            now[0] += 2.0

    reporter = ReportFile(tmp_path, clock=lambda: now[0])
    reporter._page = SlowPage()
    while now[0] < 350:
        reporter.on_epoch(None)
        now[0] += 1.0
    # At once; then a hundred seconds behind the end of the last one.
    assert written == [0, 102, 204, 306]
    reporter.close()
    assert written[-1] == 350
