"""Progress on a terminal: both stages reach their end; nothing is shown elsewhere."""

from __future__ import annotations

import io
import sys

import pytest

from rwkv_train.data.convert.pipeline import convert
from rwkv_train.data.convert.select import Arrangement
from tests.data.corpora import arranged_options


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    "arrangement", [Arrangement(), Arrangement(repeats=3, validation=0.3, dedup=True, min_tokens=9)]
)
def test_both_stages_are_shown_up_to_their_end(arrangement, tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    convert(arranged_options(tmp_path, arrangement=arrangement))
    shown = terminal.getvalue().replace("\r", "\n").splitlines()
    last = {
        stage: [line for line in shown if line.startswith(stage)][-1]
        for stage in ("tokenizing", "writing")
    }
    assert "100%" in last["tokenizing"] and "B/s" in last["tokenizing"]
    # What it counted to is what it was to count to.
    assert "100%" in last["writing"] and "tokens/s" in last["writing"]


def test_nothing_is_shown_where_there_is_no_terminal(tmp_path, capfd):
    convert(arranged_options(tmp_path))
    assert capfd.readouterr() == ("", "")
