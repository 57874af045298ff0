"""A cache that cannot be written, dead builders' locks and kernels that fail are named."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest

from rwkv_train.doctor import kernel_checks as module
from rwkv_train.doctor.kernel_checks import check_cache, check_kernels
from rwkv_train.errors import BackendError
from rwkv_train.ops.native import build
from tests.doctor.planted import fault_of, findings, only


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of the kernels of a user who has none yet."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".cache" / "rwkv_kernels"


def test_an_empty_cache_is_sound(cache):
    found = only(check_cache)
    assert found.level == "ok" and f"{cache}: 0 libraries" in found.found


def test_a_cache_that_cannot_be_written_is_named_with_the_one_that_is_taken(cache, monkeypatch):
    # Permissions would not keep the tests' user out who is root.
    cache.parent.write_text("a file where the folder would be")
    found = fault_of(check_cache, level="warn")
    assert f"{cache} cannot be written" in found.found
    assert str(cache) in found.remedy
    monkeypatch.setattr("rwkv_train.compiler.tempfile.gettempdir", lambda: str(cache.parent))
    assert "there is no place for compiled kernels" in fault_of(check_cache).found


def test_a_full_disk_below_the_cache_is_a_fault(cache, monkeypatch):
    free = module.NEEDED_BYTES - 1
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("", (), {"free": free}))
    assert "256.0 MiB free, and a build needs 256.0 MiB" in fault_of(check_cache).found


def test_the_lock_of_a_builder_that_died_is_named_with_what_it_left(cache):
    place = cache / "wkv7-cpu-0123"
    (place / "work-17").mkdir(parents=True)
    (place / "lock").write_text("process 17 on elsewhere")
    found = fault_of(check_cache, level="warn")
    assert "stale lock" in found.found and "process 17 on elsewhere died" in found.found
    assert found.remedy == f"rm -r {place / 'lock'} {place / 'work-17'}"


def test_a_lock_that_is_held_for_too_long_is_a_fault(cache):
    place = cache / "wkv7-cpu-0123"
    place.mkdir(parents=True)
    with (place / "lock").open("w") as lock:
        lock.write("process 17 on this")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "builds kernels right now" in fault_of(check_cache, level="warn").found
        earlier = time.time() - module.LONGEST_BUILD_S - 60
        os.utime(place / "lock", (earlier, earlier))
        found = fault_of(check_cache)
    assert "held by process 17 on this for 16 minutes" in found.found
    assert found.remedy == "kill 17"


def test_kernels_that_are_built_are_loaded():
    try:
        build.built_library(build.target_of("wkv7", "cpu"))
    except BackendError as error:
        pytest.skip(f"needs what builds kernels: {error}")
    found = findings(check_kernels(Path()))[0]
    assert found.level == "ok"
    assert all(name in found.found for name in ("wkv4", "wkv5", "wkv6", "wkv7", "layer"))
    assert found.measured["built"] == []


def test_kernels_that_cannot_be_loaded_are_a_fault_told_once(monkeypatch):
    monkeypatch.setattr(build, "needs_building", lambda target: False)
    monkeypatch.setattr(build, "load", lambda op, device: "its library cannot be used (noexec)")
    found = findings(check_kernels(Path()))[0]
    assert found.level == "fault" and "noexec" in found.found and "rm -r" in found.remedy
