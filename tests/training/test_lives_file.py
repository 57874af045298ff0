"""lives.jsonl is written when a life begins, before its first step, and when it ends."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from rwkv_train.report.run_lives import LIVES_FILE, LifeAccount, StartFacts, read_lives
from rwkv_train.report.run_records import METRICS_FILE
from rwkv_train.training.progress import Progress
from rwkv_train.training.reporting.lives_file import LivesFile, open_account
from rwkv_train.training.reporting.records import EndRecord, FaultRecord, StartRecord, StepRecord


def step(number: int) -> StepRecord:
    return StepRecord(number, 1.0, 1e-3, 0.0, 1.0, 128 * (number + 1), 100.0, None, seconds=2.0)


def events(folder: Path) -> list[tuple[str, int]]:
    return [(line["event"], line["tokens"]) for line in read_lives(folder)]


def test_a_life_that_ends_by_itself_tells_so_once(tmp_path: Path):
    account = LifeAccount(50.0, 50.0, lives=1)
    log = LivesFile(tmp_path, account)
    account.begin_steps(5.0, 1.0)
    log.on_start(StartRecord(0, 0, 5.0))
    log.on_step(step(0), Progress())
    account.end_steps({"ending_seconds": 4.0, "save_share": 0.5, "validation_share": 0.0})
    log.on_end(EndRecord(0, 128, 4.0, 0.5, 0.0))
    log.close()
    assert events(tmp_path) == [("start", 0), ("steps", 0), ("end", 128)]
    expected = {"restart": 4.0, "reload": 1.0, "save": 2.0, "ending": 2.0}
    assert read_lives(tmp_path)[-1]["seconds"] == expected


def test_a_life_that_a_fault_ends_tells_what_it_did_behind_its_last_record(tmp_path: Path):
    began = time.time() - 60.0
    account = LifeAccount(began, began, lives=1)
    log = LivesFile(tmp_path, account)
    account.begin_steps(10.0, 0.0)
    log.on_start(StartRecord(0, 0, 10.0))
    log.on_step(step(0), Progress())
    account.add_step(step(0).values())
    log.close()
    assert events(tmp_path) == [("start", 0), ("steps", 0), ("left", 128)]
    # 60 - 10 - 2, and what this test has taken.
    assert 48.0 <= read_lives(tmp_path)[-1]["seconds"]["broken"] < 58.0


def test_the_fault_that_ends_a_life_is_told_behind_its_end_and_every_second_once(tmp_path: Path):
    began = time.time() - 60.0
    account = LifeAccount(began, began, lives=1)
    log = LivesFile(tmp_path, account, 7)
    account.begin_steps(10.0, 0.0)
    log.on_start(StartRecord(7, 896, 10.0))
    log.on_step(step(7), Progress())
    account.add_step(step(7).values())
    log.close()
    log.on_fault(FaultRecord("rank 1 on two: stands still", 75))
    first, *_, left, told = read_lives(tmp_path)
    assert (first["step"], left["step"], told["step"]) == (7, 8, 8)
    assert "fault" not in left
    assert (told["fault"], told["status"]) == ("rank 1 on two: stands still", 75)
    # All of it was of steps, what was found out last too: 60 - 10 - 2 and what this test takes.
    assert told["seconds"].keys() == {"restart", "broken"} and told["seconds"]["restart"] == 10.0
    assert left["seconds"]["broken"] <= told["seconds"]["broken"] < 58.0


def test_a_line_that_a_full_disk_has_not_taken_is_written_at_the_next_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    place = tmp_path / LIVES_FILE
    place.mkdir()
    account = LifeAccount(50.0, 50.0, lives=1)
    log = LivesFile(tmp_path, account)
    assert "WARNING: lives.jsonl cannot write" in capsys.readouterr().err
    account.begin_steps(5.0, 0.0)
    with pytest.raises(OSError):
        log.on_start(StartRecord(0, 0, 5.0))
    place.rmdir()
    log.on_step(step(0), Progress())
    log.on_step(step(1), Progress())
    assert events(tmp_path) == [("steps", 128)]


def test_a_run_whose_records_cannot_be_read_begins_an_account_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / METRICS_FILE).write_text("{}\n")

    def refuse(path: Path, **words: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    account = open_account(tmp_path, StartFacts(0, 70.0))
    assert (account.began, account.until, account.lives) == (70.0, 70.0, 1)
    assert "cannot write: Permission denied" in capsys.readouterr().err
