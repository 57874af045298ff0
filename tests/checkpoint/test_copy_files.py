"""A copy appears whole and verified under its name, or what was there stays."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rwkv_train.checkpoint import copy_files
from rwkv_train.checkpoint.copy_files import (
    CopyAbandonedError,
    copy_file_verified,
    copy_state_verified,
)
from rwkv_train.checkpoint.resume import load_state, save_state
from rwkv_train.errors import CheckpointError
from tests.checkpoint.small_states import small_state


def on() -> bool:
    return True


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, str]:
    """A state, the name of its copy, at which an older file lies, and its digest."""
    source, target = tmp_path / "run" / "rwkv-1.state", tmp_path / "copy" / "rwkv-1.state"
    source.parent.mkdir()
    target.parent.mkdir()
    digest = save_state(source, small_state(7))
    target.write_bytes(b"as it was")
    return source, target, digest


def refused(target: Path, call: Callable[[], object]) -> str:
    """Returns why a copy failed, which has left everything as it was."""
    with pytest.raises(CheckpointError) as caught:
        call()
    assert target.read_bytes() == b"as it was"
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    return str(caught.value)


def test_a_state_is_copied_bit_for_bit(folders):
    source, target, digest = folders
    copy_state_verified(source, target, digest, on)
    assert target.read_bytes() == source.read_bytes()
    assert load_state(target)["step"] == 7


def test_a_damaged_state_is_named_and_not_copied(folders):
    source, target, digest = folders
    damaged = bytearray(source.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    source.write_bytes(damaged)
    why = refused(target, lambda: copy_state_verified(source, target, digest, on))
    assert why == f"{source} is damaged, and was not copied"


def test_a_state_that_was_replaced_meanwhile_is_not_taken_for_the_one_meant(folders):
    source, target, digest = folders
    save_state(source, small_state(8))
    why = refused(target, lambda: copy_state_verified(source, target, digest, on))
    assert "was replaced while it was copied" in why


@pytest.mark.parametrize("is_state", [True, False], ids=["state", "file"])
def test_bytes_that_the_disk_has_changed_are_found_before_the_rename(
    folders, monkeypatch: pytest.MonkeyPatch, is_state: bool
):
    source, target, digest = folders
    stream = copy_files._stream

    def torn(original, copy, go_on):
        sent = stream(original, copy, go_on)
        # As a disk that acknowledged what it lost.
        copy.truncate(copy.tell() - 100)
        return sent

    monkeypatch.setattr(copy_files, "_stream", torn)
    if is_state:
        why = refused(target, lambda: copy_state_verified(source, target, digest, on))
    else:
        why = refused(target, lambda: copy_file_verified(source, target, on))
    assert why == f"{target} would not hold what was read from {source}"


def test_a_full_disk_is_told_in_a_line(folders, monkeypatch: pytest.MonkeyPatch):
    source, target, digest = folders

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    why = refused(target, lambda: copy_state_verified(source, target, digest, on))
    assert why == f"cannot copy rwkv-1.state to {target.parent}: No space left on device"


def test_a_state_that_is_deleted_meanwhile_is_copied_to_its_end(folders):
    source, target, digest = folders
    content = source.read_bytes()

    def deletes() -> bool:
        source.unlink(missing_ok=True)
        return True

    copy_state_verified(source, target, digest, deletes)
    assert target.read_bytes() == content and not source.exists()


def test_an_abandoned_copy_leaves_nothing(folders):
    source, target, digest = folders
    with pytest.raises(CopyAbandonedError):
        copy_state_verified(source, target, digest, lambda: False)
    assert target.read_bytes() == b"as it was" and len(list(target.parent.iterdir())) == 1


def test_a_missing_file_is_a_fault_of_ours_and_no_other(folders):
    _, target, _ = folders
    gone = target.parent.parent / "gone"
    assert "cannot copy gone to" in refused(target, lambda: copy_file_verified(gone, target, on))
