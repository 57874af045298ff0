"""How every start ended, and which machines were slow, stand in a table and on the curve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rwkv_train.report.run_endings import BY_ITSELF, KILLED, RUNNING, read_endings
from rwkv_train.report.run_page import RunPage
from tests.report.made_runs import (
    NASTY,
    TOKENS,
    life,
    make_disturbed_run,
    make_run,
    start,
    step_record,
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The page of a run that was disturbed."""
    return RunPage(make_disturbed_run(tmp_path_factory.mktemp("runs") / "disturbed")).document()[0]


def tables(found: dict[str, Any]) -> dict[str, list[list[Any]]]:
    """title -> rows of the section of faults."""
    (part,) = [part for part in found["sections"] if part["name"] == "faults"]
    return {block["title"]: block["rows"] for block in part["blocks"]}


def test_every_ending_is_told_with_what_it_cost(found: dict[str, Any]):
    hung = "rank 3 on gpu07: stands still in data after step 240 for 60 s while 3 wait for it"
    assert tables(found)["How each start ended"] == [
        # Until the next step: 43 + 2 - 21 seconds of starting and reading.
        [1, "2026-11-30 09:03:21 UTC", "240", f"{hung} (status 75)", "40", "24 s"],
        # Killed 30 s before the next began, 25 steps behind step 300: 30 + 12 + 3 s.
        [2, "2026-11-30 09:06:10 UTC", "325", KILLED, "25", "45 s"],
        [3, "2026-11-30 09:08:20 UTC", "400", BY_ITSELF, "–", "–"],
    ]


def test_slow_machines_are_told_until_they_are_slow_no_more(found: dict[str, Any]):
    first, second = tables(found)["Slow machines"]
    assert first[0] == 350 and first[1].startswith("gpu02 is slow: all 8 ranks")
    assert second == [380, "none any more"]


def test_faults_and_slow_machines_are_marked_where_they_happened(found: dict[str, Any]):
    places = [(m["kind"], m["step"], m["tokens"]) for m in found["marks"] if m["kind"] != "start"]
    assert places == [
        ("slow", 350, 350 * TOKENS),
        ("fault", 240, 240 * TOKENS),
        ("fault", 325, 325 * TOKENS),
    ]
    texts = [mark["text"] for mark in found["marks"] if mark["kind"] == "fault"]
    assert texts[0].startswith("ended: rank 3 on gpu07: stands still")


def test_a_run_that_nothing_disturbed_has_no_such_section(tmp_path: Path):
    lives = [life(1, "start", 0, 0), life(1, "steps", 0, 9), life(1, "end", 20, 60)]
    records = map(step_record, range(20))
    page = RunPage(make_run(tmp_path, records, [start()], lives=lives)).document()[0]
    assert "faults" not in [part["name"] for part in page["sections"]]
    assert [mark for mark in page["marks"] if mark["kind"] == "fault"] == []


@pytest.mark.parametrize(
    ("last", "words", "is_fault"),
    [
        (life(1, "steps", 0, 9), RUNNING, False),
        (life(1, "left", 7, 9), "ended by a fault that it did not tell", True),
        # Somebody's edit.
        (life(1, "left", 7, 9, fault=["x"], status="y"), "ended by a fault that", True),
        (life(1, "left", 7, 9, fault="a full disk", status="y"), "a full disk", True),
    ],
)
def test_the_newest_start_may_run_or_have_said_little(
    tmp_path: Path, last: dict[str, Any], words: str, is_fault: bool
):
    make_run(tmp_path, [], lives=[life(1, "start", 0, 0), last])
    (ending,) = read_endings(tmp_path, TOKENS)
    assert ending.words.startswith(words) and ending.is_fault == is_fault
    assert (ending.lost_steps, ending.away_seconds) == (None, None)


def test_older_lines_lack_steps_and_get_no_mark(tmp_path: Path):
    lives = [life(1, "left", 7, 9), life(2, "start", 5, 12, lost_steps=2)]
    for line in lives:
        del line["step"]
    page = RunPage(make_run(tmp_path, [step_record(4)], lives=lives)).document()[0]
    assert tables(page)["How each start ended"][0][2:5] == [
        *("–", "ended by a fault that it did not tell", "2")
    ]
    assert page["marks"] == []


def test_what_a_fault_says_is_text_and_bounded(tmp_path: Path):
    lives = [life(n, "left", n, 10 * n, fault=NASTY + "x" * 5000, status=1) for n in range(1, 301)]
    page = RunPage(make_run(tmp_path, [step_record(4)], lives=lives)).document()[0]
    rows = tables(page)["How each start ended"]
    assert len(rows) == 100 and rows[0][0] == 1 and rows[-1][0] == 300
    assert len([m for m in page["marks"] if m["kind"] == "fault"]) == 200
    assert len(json.dumps(page)) < 400_000
