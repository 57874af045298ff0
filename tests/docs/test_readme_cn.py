"""README_CN.md says what README.md says: the same sections, commands, tables, names and links."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tests.checkout import ROOT
from tests.docs.doc_pages import FENCE

NAMES = ("README.md", "README_CN.md")
ADVICE = "change README_CN.md as README.md was changed"


def sections(name: str) -> list[str]:
    """Returns the page cut at its headings, what stands before the first one at the beginning."""
    return re.split(r"^(?=##? )", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)


PAIRS = list(zip(*map(sections, NAMES)))
by_section = pytest.mark.parametrize(
    ("english", "chinese"), PAIRS, ids=[pair[0].split("\n")[0] for pair in PAIRS]
)


def without_remarks(line: str) -> str:
    """Returns a line of a block without its comment; of the file tree, its names."""
    return re.split(r"\s+# |\s{2,}", line.rstrip())[0] if line.strip() else ""


def codes(text: str) -> Counter[str]:
    """Counts the words in backticks outside of blocks."""
    return Counter(re.findall(r"`([^`\n]+)`", FENCE.sub("", text)))


def tables(text: str) -> list[list[str]]:
    """Returns the rows of all tables, each as its cells."""
    rows = [line for line in FENCE.sub("", text).splitlines() if line.startswith("|")]
    return [row.strip("|").split("|") for row in rows]


def test_both_have_the_same_sections():
    assert len(sections(NAMES[0])) == len(sections(NAMES[1])), ADVICE


@by_section
def test_commands_and_other_blocks_differ_in_their_remarks_only(english: str, chinese: str):
    def lines(text: str) -> list[list[str]]:
        found = FENCE.finditer(text)
        return [[m[1], *map(_indented, m[2].splitlines())] for m in found]

    assert lines(chinese) == lines(english), ADVICE


def _indented(line: str) -> str:
    indentation = line[: len(line) - len(line.lstrip())]
    return indentation + without_remarks(line.strip())


@by_section
def test_the_same_names_and_flags_stand_in_the_text(english: str, chinese: str):
    ours, theirs = codes(english), codes(chinese)
    assert ours == theirs, f"{ADVICE}: missing {ours - theirs}, too many {theirs - ours}"


@by_section
def test_tables_have_the_same_rows(english: str, chinese: str):
    rows, own = tables(english), tables(chinese)
    assert len(own) == len(rows), ADVICE
    for row, translated in zip(rows, own):
        assert len(translated) == len(row), f"{ADVICE}: {row}"
        for cell, other in zip(row, translated):
            assert codes(cell) == codes(other), f"{ADVICE}: {cell}"
            # What works where is figures.
            if re.fullmatch(r"[\d, Z]*", cell):
                assert other == cell


@by_section
def test_the_same_links_and_points_are_there(english: str, chinese: str):
    def links(text: str) -> Counter[str]:
        return Counter(re.findall(r"\]\(([^)]+)\)", text)) - Counter(NAMES)

    assert links(chinese) == links(english), ADVICE
    points = re.compile(r"^\* ", re.MULTILINE)
    assert len(points.findall(chinese)) == len(points.findall(english)), ADVICE


def test_each_leads_to_the_other_at_its_top():
    for name, other in (NAMES, NAMES[::-1]):
        assert f"]({other})" in sections(name)[1]


def test_a_number_in_the_text_is_the_same_in_both():
    def numbers(text: str) -> set[str]:
        return set(re.findall(r"\d{2,}", FENCE.sub("", text)))

    both = [numbers((ROOT / name).read_text(encoding="utf-8")) for name in NAMES]
    assert both[0] == both[1]
