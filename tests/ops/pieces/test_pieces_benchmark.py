"""The benchmark of the pieces: its table, and what it refuses to time."""

from __future__ import annotations

import sys

import pytest

from benchmarks import wkv_pieces
from rwkv_train.ops import pieces
from rwkv_train.ops.pieces.algebra import DecayPiece

pytestmark = pytest.mark.usefixtures("one_thread")


def run_with(monkeypatch, *arguments: str) -> int:
    """The exit status of a small benchmark of the chunked backend."""
    small = ("--time", "40", "--heads", "2", "--size", "16", "--repeats", "1")
    command = ["wkv_pieces", *small, "--backends", "chunked", *arguments]
    monkeypatch.setattr(sys, "argv", command)
    return wkv_pieces.main()


def test_it_prints_a_line_for_every_operator(monkeypatch, capsys):
    assert run_with(monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    found = [line for line in lines if line.startswith("| wkv")]
    assert [line.split("|")[1].strip() for line in found] == ["wkv4", "wkv5", "wkv6", "wkv7"]
    assert {len(line.split("|")) for line in lines[1:]} == {10}


def test_pieces_that_are_wrong_get_no_speed(monkeypatch, capsys):
    right = pieces.wkv6_piece

    def wrong(k, v, w, **options):
        piece = right(k, v, w, **options)
        worse = 1 + 0.01 * (k.element_size() == 4)
        return DecayPiece(piece.decay, piece.contribution * worse)

    monkeypatch.setattr(pieces, "wkv6_piece", wrong)
    assert run_with(monkeypatch, "--ops", "6") == 1
    out, err = capsys.readouterr()
    assert "| wkv6" not in out
    assert "wkv6 chunked: relative error 1.0e-02 of the piece exceeds 1e-04" in err
