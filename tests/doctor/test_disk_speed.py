"""Writing and reading are timed past the cache; limits, full and lying disks are faults."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from rwkv_train.doctor import disk_speed as module
from rwkv_train.doctor.disk_speed import check_disk_speed
from tests.doctor.planted import fault_of, findings

resource = pytest.importorskip("resource", reason="needs a system with limits of a process")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a small file of it."""
    monkeypatch.setattr(module, "_PROBE_BYTES", 4 << 20)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 1 << 20)
    monkeypatch.setattr(module, "_SMALL_FILES", 2)


def test_the_disk_is_timed_and_nothing_is_left_there(tmp_path):
    (found,) = findings(check_disk_speed(tmp_path / "run"))
    assert found.level in ("ok", "warn")
    assert found.measured["write_bytes_per_s"] > 0 and found.measured["read_bytes_per_s"] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_slow_disk_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SLOW_DISK_BYTES_PER_S", 1e15)
    assert "MB/s" in fault_of(check_disk_speed, tmp_path, "warn").found


def test_a_limit_of_a_files_size_is_a_fault(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, before[1]))
    try:
        found = fault_of(check_disk_speed, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large" in found.found
    assert found.remedy == "ulimit -f unlimited"
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_fault(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    found = fault_of(check_disk_speed, tmp_path)
    assert "No space left on device" in found.found and "df -h" in found.remedy


def test_a_disk_that_gives_back_other_bytes_is_a_fault(tmp_path, monkeypatch):
    kept = module._write

    def spoiled(path: Path, block: bytes):
        answer = kept(path, block)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        return answer

    monkeypatch.setattr(module, "_write", spoiled)
    assert "other bytes than were written" in fault_of(check_disk_speed, tmp_path).found
