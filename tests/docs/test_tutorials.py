"""Every command of docs/tutorials runs at toy size, and prints what the page shows."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from tests.checkout import ROOT
from tests.docs.doc_pages import Block, blocks, unlike
from tests.docs.toy_files import prepare
from tests.docs.toy_shell import ToyShell

TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))

pytestmark = pytest.mark.slow


def shown_behind(page: list[Block]) -> dict[Block, str]:
    """Returns what the page shows as printed by each block of commands."""
    return {a: b.text for a, b in pairwise(page) if (a.language, b.language) == ("sh", "text")}


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_the_commands_of_a_tutorial_run_and_print_what_it_shows(path: Path, tmp_path: Path):
    page = blocks(path)
    prepare(tmp_path, path.read_text(encoding="utf-8"))
    run = [b for b in page if b.language == "sh" and b.needs != "the network"]
    with ToyShell(path.relative_to(ROOT).as_posix()) as shell:
        done = shell.run(run, tmp_path)
    last = list(done.blocks)[-1]
    assert done.status == 0, f"{last.page}:{last.line}\n{done.blocks[last]}"
    for block, shown in shown_behind(page).items():
        wrong = unlike(shown, done.blocks.get(block, shown))
        assert not wrong, f"{block.page}:{block.line} prints no {wrong!r}:\n{done.blocks[block]}"
