"""Batches on their way: made one ahead, and shown on a terminal up to the end of both stages."""

from __future__ import annotations

import io
import sys
import threading

import pytest

from rwkv_train.data.convert.pipeline import convert
from rwkv_train.data.convert.select import Arrangement
from rwkv_train.data.convert.streams import read_ahead
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


def test_batches_are_made_one_ahead_in_order_and_no_further():
    made, threads = [], set()

    def batches():
        for i in range(5):
            threads.add(threading.get_ident())
            made.append(i)
            yield i

    ahead = read_ahead(batches())
    assert next(ahead) == 0
    assert list(ahead) == [1, 2, 3, 4] and made == [0, 1, 2, 3, 4]
    assert threading.get_ident() not in threads
    made.clear()
    ahead = read_ahead(batches())
    next(ahead)
    ahead.close()
    assert made in ([0], [0, 1])


def test_a_fault_while_reading_ahead_is_raised_in_its_turn():
    def batches():
        yield 1
        raise OSError("gone")

    ahead = read_ahead(batches())
    assert next(ahead) == 1
    with pytest.raises(OSError, match="gone"):
        next(ahead)
