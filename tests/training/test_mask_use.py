"""A loss mask is used as asked, its absence told, a damaged one refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import train
from tests.training.runs import losses


@pytest.mark.parametrize(
    ("data", "held_out", "note"),
    [
        ("masked", "corpus", "the held-out data has no loss mask: validation counts all"),
        ("corpus", "masked", "training has no mask"),
    ],
)
def test_a_mask_on_one_side_only_is_said(
    masked: Path,
    corpus: Path,
    flags: Callable[..., list[str]],
    capfd: pytest.CaptureFixture[str],
    data: str,
    held_out: str,
    note: str,
):
    prefixes = {"masked": masked, "corpus": corpus}
    line = flags(
        data_file=prefixes[data],
        val_data_file=f"{prefixes[held_out]}_val",
        val_samples=2,
        max_steps=1,
    )
    assert train.main(line) == 0
    assert note in capfd.readouterr().out


def test_a_mask_can_be_left_unused(
    masked: Path, corpus: Path, tmp_path: Path, run_training: Callable[..., int]
):
    for name, changes in {
        "plain": {"data_file": corpus},
        "off": {"data_file": masked, "loss_mask": "off"},
        "on": {"data_file": masked, "loss_mask": "on"},
    }.items():
        assert run_training(proj_dir=tmp_path / name, max_steps=2, **changes) == 0
    assert losses(tmp_path / "plain") == losses(tmp_path / "off") != losses(tmp_path / "on")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--loss_mask", "on"], ["--loss_mask on", "make_data.py --chat_template"]),
        (["--loss_mask", "maybe"], ["--loss_mask", "auto"]),
        (["--my_qa_mask", "1"], ["--my_qa_mask 1", "make_data.py --chat_template"]),
    ],
)
def test_a_run_that_cannot_have_its_mask_is_refused(place, refused, changes, words):
    message = refused(place.command("--proj_dir", place.empty, *changes))
    assert all(word in message for word in words), message


def test_a_damaged_mask_is_refused_before_anything_is_written(place, refused):
    (place.root / "data" / "text.mask").write_bytes(b"12")
    message = refused(place.command("--proj_dir", place.empty))
    assert "has 2 bytes" in message and "--loss_mask off" in message
    message = refused(
        place.command(
            "--proj_dir",
            place.empty,
            "--loss_mask",
            "off",
            "--val_data_file",
            place.root / "nothing",
        )
    )
    assert "nothing.idx does not exist" in message
