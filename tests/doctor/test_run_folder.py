"""A folder or shared memory that is small, full, read-only, locked or has no locks is named."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import pytest

from rwkv_train.doctor import run_folder as module
from rwkv_train.doctor.run_folder import (
    check_files,
    check_folder,
    check_shm,
    check_temporary,
    existing_parent,
    file_system,
)
from rwkv_train.training.start import file_systems
from rwkv_train.training.start.lock_owner import Owner
from tests.doctor.planted import fault_of, only

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's /dev/shm")


def room(free: int):
    """A stand-in for shutil.disk_usage."""
    return lambda path: type("Usage", (), {"free": free, "total": 64 << 20})


def test_a_folder_that_does_not_exist_yet_is_not_made(tmp_path):
    found = only(check_folder, tmp_path / "out" / "new")
    assert found.level in ("ok", "warn") and str(tmp_path) in found.found
    assert list(tmp_path.iterdir()) == []
    assert existing_parent(tmp_path / "out" / "new") == tmp_path


def test_a_full_disk_is_a_fault(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "write_atomically", full)
    found = fault_of(check_folder, tmp_path)
    assert "No space left on device" in found.found and f"df -h {tmp_path}" in found.remedy


@pytest.mark.parametrize(("free", "level"), [(100 << 20, "fault"), (2 << 30, "warn")])
def test_little_room_is_named(tmp_path, monkeypatch, free, level):
    monkeypatch.setattr(module.shutil, "disk_usage", room(free))
    monkeypatch.setattr(module, "IN_MEMORY", ())
    assert "free at" in fault_of(check_folder, tmp_path, level).found


def test_inodes_that_are_used_up_are_a_fault(tmp_path, monkeypatch):
    none = type("Inodes", (), {"f_files": 9000, "f_favail": 0})
    monkeypatch.setattr(module.shutil, "disk_usage", room(1 << 40))
    monkeypatch.setattr(module.os, "statvfs", lambda path: none)
    assert "0 inodes are left" in fault_of(check_folder, tmp_path).found


def test_a_file_in_the_folders_place_is_a_fault(tmp_path):
    (tmp_path / "out").write_text("")
    assert "is no folder" in fault_of(check_folder, tmp_path / "out" / "run").found


def test_a_folder_that_may_not_be_looked_into_is_a_fault(tmp_path, monkeypatch):
    # The tests' user may be root, whom no permission keeps out.
    def refused(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "exists", refused)
    monkeypatch.setattr(Path, "is_dir", refused)
    found = fault_of(check_folder, tmp_path / "secret")
    assert found.found == f"{tmp_path / 'secret'} cannot be written: Permission denied"
    assert "choose another folder" in found.remedy


def test_a_folder_in_memory_is_named(tmp_path, monkeypatch):
    table = tmp_path / "mounts"
    table.write_text(f"/dev/sda / ext4 rw 0 0\nnone {tmp_path.resolve()} tmpfs rw 0 0\n")
    monkeypatch.setattr(file_systems, "MOUNT_TABLE", table)
    assert file_system(tmp_path) == "tmpfs" and file_system(tmp_path.parent) == "ext4"
    assert "gone at a restart" in fault_of(check_folder, tmp_path, "warn").found


def owner(**fields) -> bytes:
    own = json.loads(Owner.of_this_process("2026-01-01 10:00:00").to_json())
    return json.dumps({**own, **fields}).encode()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (owner(process=(1 << 22) + 5), "has ended; the next run takes it over"),
        (owner(), "another run works in"),
        (owner(boot="another"), "cannot be asked from here: a start waits up to 120 s"),
        (b"", "names nobody"),
    ],
)
def test_a_lock_in_the_folder_is_named_with_what_it_means(tmp_path, content, told):
    (tmp_path / "run.lock").write_bytes(content)
    found = fault_of(check_folder, tmp_path, "warn")
    assert told in found.found
    assert (tmp_path / "run.lock").read_bytes() == content


def test_files_are_renamed_and_locked_as_a_run_does_it(tmp_path):
    found = only(check_files, tmp_path)
    assert found.level == "ok", found
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_locks_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("rwkv_train.training.start.run_lock._lock", lambda descriptor: None)
    assert "keeps no locks" in fault_of(check_files, tmp_path, "warn").found


def test_a_clock_that_differs_from_the_file_servers_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CLOCK_DIFFERENCE_S", -1.0)
    assert "differs by 0 s" in fault_of(check_files, tmp_path, "warn").found


def test_no_folder_for_temporary_files_is_a_fault(tmp_path, monkeypatch):
    assert only(check_temporary).level == "ok"
    monkeypatch.setattr(module.shutil, "disk_usage", room(1 << 20))
    assert "1.0 MiB free at" in fault_of(check_temporary).found
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path / "none"))
    found = fault_of(check_temporary)
    assert "No such file or directory" in found.found and found.remedy.startswith("export TMPDIR=")


@linux
@pytest.mark.parametrize(("free", "level"), [(8 << 20, "fault"), (60 << 20, "warn")])
def test_small_shared_memory_is_named(monkeypatch, free, level):
    monkeypatch.setattr(module.shutil, "disk_usage", room(free))
    found = fault_of(check_shm, level=level)
    assert f"{free >> 20}.0 MiB free of 64.0 MiB" in found.found
    assert "docker run --shm-size=8g" in found.remedy


@linux
def test_absent_shared_memory_is_a_fault(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "SHARED_MEMORY", tmp_path / "none")
    assert "cannot be written" in fault_of(check_shm).found
