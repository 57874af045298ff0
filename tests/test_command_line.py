"""Faults of a command line are told in one line."""

from __future__ import annotations

import sys

import pytest

from rwkv_train.checkpoint.merge import main as merge
from rwkv_train.command_line import OneLineParser
from rwkv_train.inference.__main__ import main as generate


def test_a_wrong_word_ends_with_status_2_and_one_line(capsys):
    parser = OneLineParser(prog="toy")
    parser.add_argument("number", type=int)
    with pytest.raises(SystemExit) as left:
        parser.parse_args(["three"])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == ("error: argument number: invalid int value: 'three' (--help lists the options)")


@pytest.mark.parametrize("main", [merge, generate])
def test_a_program_called_without_words_takes_those_of_the_process(main, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["program", "--no_such_flag"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("flag", "meant"),
    [("--load", "--load_model"), ("--load-model", "--load_model"), ("--seeed", "--seed")],
)
def test_an_unknown_flag_is_told_before_what_is_missing_with_a_similar_one(flag, meant, capsys):
    parser = OneLineParser(prog="toy", allow_abbrev=False)
    parser.add_argument("--load_model", required=True)
    parser.add_argument("--seed")
    with pytest.raises(SystemExit) as left:
        parser.parse_args([flag, "x"])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: unrecognized arguments: {flag}; perhaps you meant {meant} (")


def test_words_behind_two_dashes_and_short_forms_are_no_unknown_flags():
    parser = OneLineParser(prog="toy")
    parser.add_argument("word")
    parser.add_argument("--seed", type=int)
    found = parser.parse_args(["--se", "3", "--", "--hello"])
    assert (found.word, found.seed) == ("--hello", 3)
