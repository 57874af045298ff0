"""The page of a run says what its files hold, in the words of its readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rwkv_train.report.comparison_page import comparison_document, distinct_names
from rwkv_train.report.page_blocks import numbers, shown_bytes, shown_count, shown_seconds
from rwkv_train.report.run_page import RunPage
from tests.report.made_runs import make_full_run, make_run, start, step_record


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The page of a run that has everything."""
    return RunPage(make_full_run(tmp_path_factory.mktemp("runs") / "full")).document()[0]


def blocks(found: dict[str, Any]) -> dict[str, Any]:
    """title -> chart or table of a page."""
    return {block["title"]: block for part in found["sections"] for block in part["blocks"]}


def test_the_tiles_say_where_the_run_stands(found: dict[str, Any]):
    tiles = {tile["label"]: (tile["value"], tile["note"]) for tile in found["tiles"]}
    assert tiles["steps"] == ("400", "819 k tokens, 40% of the budget")
    assert tiles["bad steps"] == ("3", "1 return to an earlier state")
    assert tiles["validation loss"][0] == "1.4991"
    assert tiles["MFU"] == ("41.0%", "of the rate measured here, median")


def test_mishaps_and_starts_are_marked_where_they_happened(found: dict[str, Any]):
    places = [(mark["kind"], mark["step"], mark["tokens"]) for mark in found["marks"]]
    assert places == [
        *(("skipped", step, step * 2048) for step in (121, 122, 123)),
        ("rollback", 123, 123 * 2048),
        ("start", 200, 200 * 2048),
    ]
    assert found["marks"][-1]["text"] == "lr_init 0.002"


def test_a_start_that_the_run_went_back_behind_is_not_marked(tmp_path: Path):
    starts = [start(), start(8), start(12), start(6)]
    page = RunPage(make_run(tmp_path, map(step_record, range(20)), starts)).document()[0]
    assert [mark["step"] for mark in page["marks"]] == [6]


def test_every_table_has_its_rows(found: dict[str, Any]):
    tables = blocks(found)
    assert tables["Skipped steps"]["rows"][0] == [121, "loss is NaN", "961 to 968", "963"]
    assert tables["Returns to an earlier state"]["rows"] == [
        [123, "rwkv-step-100.state", "801 to 984"]
    ]
    first, second = tables["Starts"]["rows"]
    assert first[0] == "2026-11-30 09:00:00 UTC" and first[-1] == "nothing"
    assert second[1:] == [
        *("200", "rwkv-init.pth", "0.2.1", "lr_init 0.003 -> 0.002: another course")
    ]
    environment = {row[0]: row[1] for row in tables["Environment"]["rows"]}
    assert environment["torch"] == "2.13.0+cpu" and environment["memory"] == "23.5 GiB"
    assert environment["card 0"] == "H200, 150 GiB, capability 9.0"
    plan = {row[0]: row[1:] for row in tables["Plan against measurement"]["rows"]}
    # 900,399,000 bytes of 1,000,000,000.
    assert plan["memory of a process, in all"] == ["954 MiB", "859 MiB (90%)"]
    assert plan["memory: activations"] == ["668 MiB", ""]


def test_older_records_leave_out_what_they_do_not_tell(tmp_path: Path):
    records = (step_record(n) for n in range(20))
    page = RunPage(make_run(tmp_path, records, [start()], settings=None)).document()[0]
    titles = blocks(page).keys()
    assert "Model's arithmetic (MFU)" not in titles and "Memory" not in titles
    assert "Waiting and pauses" not in titles and "Throughput" in titles
    assert "goodput" not in [tile["label"] for tile in page["tiles"]]


def test_a_comparison_shows_what_differs_and_nothing_that_is_the_same(tmp_path: Path):
    one, two = make_full_run(tmp_path / "a" / "out"), make_full_run(tmp_path / "b" / "out")
    text = (two / "config.yaml").read_text().replace("n_embd: 192", "n_embd: 256")
    (two / "config.yaml").write_text(text.replace("proj_dir: out", "proj_dir: other"))
    page = comparison_document([one, two])
    tables = blocks(page)
    assert tables["Settings that differ"]["columns"] == ["setting", "a/out", "b/out"]
    assert tables["Settings that differ"]["rows"] == [["n_embd", "192", "256"]]
    assert "Machines that differ" not in tables
    assert [s["name"] for s in tables["Training loss"]["series"]] == ["a/out", "b/out"]
    row = tables["Figures of the runs"]["rows"][0]
    assert row[0] == "a/out" and row[2:4] == ["400", "819 k"] and row[-2] == "3"


def test_names_of_runs_are_as_short_as_they_can_be():
    paths = [Path(p) for p in ("/x/a/out", "/x/b/out", "/x/c")]
    assert distinct_names(paths) == ["a/out", "b/out", "x/c"]
    assert distinct_names(paths[1:]) == ["out", "c"]


def test_figures_are_written_as_people_write_them():
    assert numbers([1.234567, 0.0, 123456.7, -1e-9, float("nan"), None]) == [
        *(1.2346, 0, 123460, -1e-9, None, None)
    ]
    assert [shown_bytes(n) for n in (5, 1536, 3 * 2**30)] == ["5 bytes", "1.5 KiB", "3 GiB"]
    assert [shown_count(n) for n in (7, 999_900, 2_050_000)] == ["7", "1 M", "2.05 M"]
    assert [shown_seconds(n) for n in (0.25, 59.6, 61, 7260, 3 * 86400)] == [
        *("0.25 s", "59.6 s", "1 min 01 s", "2 h 01 min", "3 d 0 h")
    ]
