"""Checkpoint names: which files of a folder are checkpoints, and which is the newest."""

from __future__ import annotations

import pytest

from rwkv_train.checkpoint.names import FINAL, INIT, epoch_of, list_checkpoints, numbered


def test_names_and_numbers_belong_together():
    assert (INIT, FINAL) == ("rwkv-init.pth", "rwkv-final.pth")
    assert numbered(0) == "rwkv-0.pth"
    assert [epoch_of(numbered(n)) for n in (0, 7, 10, 1234)] == [0, 7, 10, 1234]
    assert epoch_of(INIT) == -1


@pytest.mark.parametrize(
    "name",
    [
        FINAL,
        "rwkv-init-state.pth",
        "rwkv-12-state.pth",
        "rwkv_base.pth",
        "rwkv-x070-0.4b.pth",
        "rwkv-.pth",
        "rwkv--1.pth",
        "rwkv-01.pth",
        "rwkv-1.pth.tmp",
        "rwkv-1.safetensors",
        "xrwkv-1.pth",
        "rwkv-1.pthx",
        "rwkv-1apth",
        "rwkv-²۳.pth",
        "",
        "rwkv-1.pth\n",
    ],
)
def test_strangers_have_no_number(name):
    assert epoch_of(name) is None


def test_negative_numbers_have_no_name():
    with pytest.raises(ValueError, match="count from 0"):
        numbered(-1)


def test_checkpoints_are_listed_newest_first_without_strangers(tmp_path):
    for name in (
        INIT,
        FINAL,
        "rwkv-2.pth",
        "rwkv-10.pth",
        "rwkv-9.pth",
        "rwkv-init-state.pth",
        "rwkv_base.pth",
        "train_log.txt",
        "rwkv-11.pth.123.partial",
    ):
        (tmp_path / name).touch()
    # ZeRO-3 of RWKV-LM leaves folders of shards under this name.
    (tmp_path / "rwkv-12.pth").mkdir()
    assert list_checkpoints(tmp_path) == [
        (10, tmp_path / "rwkv-10.pth"),
        (9, tmp_path / "rwkv-9.pth"),
        (2, tmp_path / "rwkv-2.pth"),
        (-1, tmp_path / "rwkv-init.pth"),
    ]


def test_a_missing_or_empty_folder_holds_none(tmp_path):
    assert list_checkpoints(tmp_path) == []
    assert list_checkpoints(str(tmp_path / "nowhere")) == []
