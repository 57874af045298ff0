"""Every command of docs/tutorials runs at toy size, and prints what the page shows."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from tests.checkout import ROOT
from tests.docs.doc_pages import Block, blocks, commands, unlike
from tests.docs.toy_files import prepare
from tests.docs.toy_shell import ToyShell

TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("[a-z]*.md"))

# Nothing of ours is in such a block: see test_what_is_not_run_is_a_few_blocks_of_other_programs.
NOT_RUN = ("the network", "Docker")

pytestmark = pytest.mark.slow


def shown_behind(page: list[Block]) -> dict[Block, str]:
    """Returns what the page shows as printed by each block of commands."""
    return {a: b.text for a, b in pairwise(page) if (a.language, b.language) == ("sh", "text")}


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_the_commands_of_a_tutorial_run_and_print_what_it_shows(path: Path, tmp_path: Path):
    page = blocks(path)
    prepare(tmp_path, path.read_text(encoding="utf-8"))
    run = [block for block in page if block.language == "sh" and block.needs not in NOT_RUN]
    with ToyShell(path.relative_to(ROOT).as_posix()) as shell:
        done = shell.run(run, tmp_path)
    last = list(done.blocks)[-1]
    assert done.status == 0, f"{last.page}:{last.line}\n{done.blocks[last]}"
    for block, shown in shown_behind(page).items():
        wrong = unlike(shown, done.blocks.get(block, shown))
        assert not wrong, f"{block.page}:{block.line} prints no {wrong!r}:\n{done.blocks[block]}"


def test_what_is_not_run_is_a_few_blocks_of_other_programs():
    left = [
        command.words[0]
        for path in TUTORIALS
        for block in blocks(path)
        if block.needs in NOT_RUN
        for command in commands(block.text)
    ]
    assert sorted(left) == ["hf", "pip", "wandb"]


def test_every_tutorial_is_in_the_index_and_shows_what_is_printed():
    index = (ROOT / "docs" / "tutorials" / "README.md").read_text(encoding="utf-8")
    for path in TUTORIALS:
        assert f"]({path.name})" in index
        runs = [block for block in blocks(path) if block.language == "sh"]
        shown = [block for block in blocks(path) if block.language == "text"]
        assert len(runs) >= 2 and shown


def test_a_command_that_fails_ends_the_page_there(tmp_path: Path):
    words = ["echo before", "python train.py --no_such_flag 1", "echo behind"]
    page = [Block("docs/a.md", n, "sh", f"{line}\n") for n, line in enumerate(words)]
    with ToyShell("docs/a.md") as shell:
        done = shell.run(page, tmp_path)
    assert done.status == 2
    assert done.blocks[page[0]].strip() == "before"
    assert "error: unknown flag --no_such_flag" in done.blocks[page[1]]
    assert page[2] not in done.blocks
    shown = {page[0]: "before", page[1]: "something else"}
    assert [unlike(text, done.blocks[block]) for block, text in shown.items()] == [
        "",
        "something else",
    ]
