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
from rwkv_train.files import remove
from tests.checkpoint.small_states import save_small_folder, small_state


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


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Path, Path, str]:
    """A state in a folder, the name of its copy, at which an older one lies, and its digest."""
    source, target = tmp_path / "run" / "rwkv-1.state", tmp_path / "copy" / "rwkv-1.state"
    source.parent.mkdir()
    target.parent.mkdir()
    digest = save_small_folder(source, small_state(7), 3)
    save_small_folder(target, small_state(5))
    return source, target, digest


def refused_folder(target: Path, call: Callable[[], object]) -> str:
    """Returns why the copy of a folder failed, which has left the older one as it was."""
    with pytest.raises(CheckpointError) as caught:
        call()
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert load_state(target)["step"] == 5
    return str(caught.value)


def test_a_folder_takes_the_place_of_an_older_one_file_by_file(parts):
    source, target, digest = parts
    copy_state_verified(source, target, digest, on)
    found = {path.name: path.read_bytes() for path in target.iterdir()}
    assert found == {path.name: path.read_bytes() for path in source.iterdir()}
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    # One that is in a file now takes the folder's place, and the reverse.
    other = source.with_name("rwkv-2.state")
    copy_state_verified(other, target, save_state(other, small_state(9)), on)
    assert load_state(target)["step"] == 9
    copy_state_verified(source, target, digest, on)
    assert load_state(target)["step"] == 7


def test_a_torn_swapped_or_lost_part_is_named_and_not_copied(parts, tmp_path: Path):
    source, target, digest = parts
    part = source / "__1_0.distcp"
    whole = part.read_bytes()
    other = tmp_path / "other.state"
    save_small_folder(other, small_state(8), 3)
    for content in (whole[:-1], (other / part.name).read_bytes()):
        part.write_bytes(content)
        why = refused_folder(target, lambda: copy_state_verified(source, target, digest, on))
        assert why == f"{source} is damaged in its part __1_0.distcp, and was not copied"
    part.unlink()
    why = refused_folder(target, lambda: copy_state_verified(source, target, digest, on))
    assert why == f"cannot copy rwkv-1.state to {target.parent}: No such file or directory"
    part.write_bytes(whole)
    why = refused_folder(target, lambda: copy_state_verified(source, target, "another", on))
    assert why == f"{source} was replaced while it was copied"


def test_parts_that_the_disk_has_changed_are_found_before_the_rename(
    parts, monkeypatch: pytest.MonkeyPatch
):
    source, target, digest = parts
    stream = copy_files._stream

    def torn(original, copy, go_on):
        sent = stream(original, copy, go_on)
        if copy.name.endswith("__2_0.distcp"):
            copy.truncate(copy.tell() - 1)
        return sent

    monkeypatch.setattr(copy_files, "_stream", torn)
    why = refused_folder(target, lambda: copy_state_verified(source, target, digest, on))
    assert f"{target} would be no copy of {source}: " in why and "__2_0.distcp has" in why


@pytest.mark.parametrize("limit", [512, 2], ids=["few parts", "more than can be open"])
def test_a_folder_that_is_deleted_meanwhile_is_copied_to_its_end(
    parts, monkeypatch: pytest.MonkeyPatch, limit: int
):
    source, target, digest = parts
    monkeypatch.setattr(copy_files, "_OPEN", limit)

    def deletes() -> bool:
        remove(source)
        return True

    if limit == 512:
        copy_state_verified(source, target, digest, deletes)
        assert load_state(target)["step"] == 7 and not source.exists()
    else:
        refused_folder(target, lambda: copy_state_verified(source, target, digest, deletes))


def test_an_abandoned_copy_of_a_folder_leaves_nothing(parts):
    source, target, digest = parts
    with pytest.raises(CopyAbandonedError):
        copy_state_verified(source, target, digest, lambda: False)
    assert [path.name for path in target.parent.iterdir()] == [target.name]
