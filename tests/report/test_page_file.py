"""A page is one file that holds its data as data, and stays small."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rwkv_train.report import run_page
from rwkv_train.report.page_file import SCRIPTS, page_text
from rwkv_train.report.run_page import RunPage
from tests.checkout import ROOT
from tests.report.made_runs import NASTY, TOKENS, make_full_run, make_run, start, timed, validation

SOURCES = ROOT / "src" / "rwkv_train" / "report"
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Reader(HTMLParser):
    """What an HTML parser sees: elements that were not closed, addresses, the data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.data = self._kind = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Opens an element."""
        self.tags.append(tag)
        given = dict(attrs)
        self.addresses += [given[name] or "" for name in ("src", "href") if name in given]
        self._kind = given.get("id") or ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Closes the element that was opened last."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keeps the page's data."""
        if self._kind == "report-data" and self.open[-1:] == ["script"]:
            self.data += data


def document(folder: Path) -> dict:
    """The contents of a folder's page."""
    return RunPage(folder).document()[0]


def test_no_text_of_a_run_becomes_markup(tmp_path: Path):
    sample = {"step": 0, "samples": [{"prompt": NASTY, "text": NASTY}]}
    bad = {"step": 1, "skipped": NASTY, "samples": [1, 8], "suspects": [], "tokens": 2 * TOKENS}
    folder = make_run(tmp_path / "a<b>&c", [timed(0), sample, bad], [start(changes=[NASTY])])
    found = document(folder)
    page = Reader(page_text(found))
    assert page.open == [] and json.loads(page.data) == found
    assert page.tags.count("script") == 2 and "img" not in page.tags
    assert NASTY in json.dumps(found, ensure_ascii=False).replace("\\n", "\n")
    text = page_text(found)
    assert "<title>a&lt;b&gt;&amp;c: RWKV-6" in text
    assert not set("\u2028\u2029\ud800").intersection(text)


def test_nothing_is_asked_of_a_network(tmp_path: Path):
    text = page_text(document(make_full_run(tmp_path / "run")))
    page = Reader(text)
    assert page.addresses == ["data:,"]
    assert "default-src 'none'" in text
    # The only address there is: the name of SVG's elements, which nobody opens.
    assert set(re.findall(r"\w+://[^\"' )]+", text)) == {"http://www.w3.org/2000/svg"}


def test_a_folder_with_nothing_but_a_torn_line_still_has_a_page(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "lo')
    found = document(tmp_path)
    assert found["tiles"] == [
        {"label": "steps", "value": "none yet", "note": "metrics.jsonl holds no steps"}
    ]
    words = json.dumps(found["sections"])
    for missing in ("config.yaml is missing", "starts.jsonl is missing", "no plan.json"):
        assert missing in words
    assert Reader(page_text(found)).open == []


def test_files_that_somebody_has_damaged_cost_their_section_alone(tmp_path: Path):
    make_run(tmp_path, [timed(n) for n in range(5)], settings="model: [1, 2")
    (tmp_path / "plan.json").write_text("[3]")
    (tmp_path / "starts.jsonl").write_text('{"step": 3}\n[]\n{"machine": {"cards": 3}}\n')
    found = document(tmp_path)
    assert "config.yaml cannot be read" in json.dumps(found["sections"])
    assert found["tiles"][0]["label"] == "training loss"


def test_facts_are_read_again_when_a_file_has_changed_and_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    page = RunPage(make_full_run(tmp_path / "run"))
    first = page.facts()
    assert page.facts() is first
    (tmp_path / "run" / "plan.json").unlink()
    assert page.facts().plan == {} != first.plan


def test_the_largest_run_stays_below_a_megabyte(tmp_path: Path):
    groups = {f"a group with a long name {i}": 0.123456789 for i in range(20)}
    records = []
    # As many points as there can be: of two steps each.
    for step in range(3200):
        records.append(timed(step, grad_norms=groups) if step % 3 else timed(step))
        if step % 5 == 0:
            records.append(validation(step))
        if step % 40 == 0:
            texts = [{"prompt": "世" * 9000, "text": "😀" * 9000} for _ in range(3)]
            records.append({"step": step, "samples": texts})
            figures = {f"metric{m}": 0.123456789 for m in range(6)}
            records.append({"step": step, "eval": {f"task{t}": figures for t in range(9)}})
        if step % 4 == 0:
            bad = {"skipped": "x" * 2000, "samples": [1, 8], "suspects": list(range(64))}
            records.append({"step": step, **bad, "tokens": (step + 1) * TOKENS})
    starts = [start(n * 50, changes=["x" * 1000], labels=["y" * 500]) for n in range(100)]
    text = page_text(document(make_run(tmp_path, records, starts)))
    assert 1 << 19 < len(text.encode()) <= 1 << 20


def test_the_page_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = make_full_run(tmp_path / "run")
    RunPage(folder).write()
    before = (folder / "report.html").read_bytes()
    monkeypatch.setattr(run_page, "run_document", lambda *_: ({"title": "x"}, None))
    with pytest.raises(KeyError):
        RunPage(folder).write()
    assert (folder / "report.html").read_bytes() == before
    assert not list(folder.glob("*.partial"))


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast of two colours (WCAG 2.2)."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_have_the_contrast_that_wcag_aa_asks_for():
    style = (SOURCES / "report_page.css").read_text(encoding="utf-8")
    sets = [dict(re.findall(r"--([\w]+): (#\w{6});", part)) for part in style.split("}")[:4]]
    sets = [colours for colours in sets if colours]
    assert len(sets) == 3 and sets[1] == sets[2]
    for colours in sets[:2]:
        for back in (colours["back"], colours["panel"]):
            for text in ("ink", "quiet", "link"):
                assert contrast(colours[text], back) >= 4.5, text
            for line in (*(f"c{i}" for i in range(8)), "bad", "turn", "start"):
                assert contrast(colours[line], back) >= 3, line


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node to run the page's arithmetic")
def test_the_pages_arithmetic_is_right():
    ended = subprocess.run(
        ["node", "-e", SCALES, str(SOURCES / "chart_scales.js")], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (0, "")


SCALES = r"""
const assert = require("assert").strict, S = require(process.argv[1]);
assert.deepEqual(S.ticks(0, 10, 5, false), [0, 2, 4, 6, 8, 10]);
assert.deepEqual(S.ticks(0.1, 0.35, 3, false), [0.1, 0.2, 0.3]);
assert.deepEqual(S.ticks(3, 3, 5, false), [3]);
assert.deepEqual(S.ticks(1, 1000, 5, true), [1, 10, 100, 1000]);
assert.equal(S.place(10, 1, 100, true), 0.5);
assert.equal(S.value(0.5, 1, 100, true), 10);
assert.equal(S.value(0.25, 0, 8, false), 2);
assert.deepEqual(S.extent([null, 5], false), [4.5, 5.5]);
assert.deepEqual(S.extent([0, 100], false), [0, 104]);
assert.deepEqual(S.extent([-1, 0, 2, 8], true), [2, 8]);
assert.deepEqual(S.extent([], false), [0, 1]);
// Half of 0.6 of ten values: three on each side, less at the ends.
assert.deepEqual(S.smooth([0, 2, 4, 6, 8, 10, 12, 14, 16, 18], 0.6).slice(0, 4), [0, 2, 4, 6]);
assert.equal(S.smooth([0, 3, null, 9], 1)[1], 1.5);
assert.deepEqual(S.smooth([1, 5], 0), [1, 5]);
const smoothed = S.smoothLogs([1, 100, 1, 0], 1);
assert.deepEqual(smoothed.map((v) => v && v.toFixed(3)), ["1.000", "4.642", "4.642", null]);
assert.deepEqual([4, 5.1, 9, -3].map((x) => S.nearest([0, 5, 10], x)), [1, 1, 2, 0]);
assert.deepEqual(S.spread(101, 3), [0, 50, 100]);
assert.deepEqual([12345, 1.23456789, 0.00001].map(S.words), ["12,345", "1.2346", "1e-5"]);
assert.equal(S.words(null), "–");
assert.deepEqual([0, 250000, 0.5, 0.0001].map(S.short), ["0", "250 k", "0.5", "1e-4"]);
assert.deepEqual(S.stack([[1, null], [2, 3]]), [[[0, 1], [0, 0]], [[1, 3], [0, 3]]]);
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node to read the page's programs")
def test_the_pages_programs_can_be_read_by_node(tmp_path: Path):
    # One after the other, as the page has them: no name is declared twice.
    whole = tmp_path / "page.js"
    whole.write_text("\n".join((SOURCES / name).read_text() for name in SCRIPTS))
    ended = subprocess.run(["node", "--check", str(whole)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
