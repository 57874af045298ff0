"""docs/scaling.md shows what rwkv-plan prints, and the tables that its command writes."""

from __future__ import annotations

import shlex
from itertools import pairwise

import pytest

from benchmarks.cluster_tables import DOCUMENT, MODELS, flags_for, with_tables
from rwkv_train.planning.__main__ import main
from tests.docs.doc_pages import Block, blocks

SHOWN = [
    (commands, shown)
    for commands, shown in pairwise(blocks(DOCUMENT))
    if (commands.language, shown.language) == ("sh", "text")
]


def missing(shown: str, printed: str) -> str:
    """Returns the first passage shown that was not printed; … stands for lines between."""
    rest = printed
    for passage in shown.split("…\n"):
        _, found, rest = rest.partition(passage)
        if not found:
            return passage
    return ""


@pytest.mark.parametrize(("commands", "shown"), SHOWN, ids=["whole", "in part"])
def test_the_page_shows_what_is_printed_in_every_digit(commands: Block, shown: Block, capsys):
    program, *words = shlex.split(commands.text.replace("\\\n", " "))
    assert program == "rwkv-plan" and main(words) == 0
    assert not missing(shown.text, capsys.readouterr().out)


def test_the_tables_are_those_that_the_command_writes():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert with_tables(text) == text


def test_more_machines_share_the_batch_and_at_last_the_samples():
    model = MODELS[1]
    # 512 samples of 4096 tokens; 8 at once in a card.
    assert flags_for(model, 1) == "--micro_bsz 8 --accumulate_grad_batches 8"
    assert flags_for(model, 32) == "--micro_bsz 2"
    assert flags_for(model, 128) == "--micro_bsz 1 --context_parallel 2"
    assert flags_for(model, 1000) == "--micro_bsz 1 --context_parallel 8"


def test_a_shown_text_is_found_in_order_or_missed():
    assert missing("a\n…\nc\n", "x\na\nb\nc\n") == ""
    assert missing("c\n…\na\n", "a\nb\nc\n") == "a\n"
