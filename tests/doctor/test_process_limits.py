"""Low limits of a process, real ones of this one, are named with the command that raises them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rwkv_train import processors
from rwkv_train.doctor import process_limits as module
from rwkv_train.doctor.process_limits import check_process_limits
from rwkv_train.doctor.python_packages import TorchBuild
from tests.doctor.planted import fault_of, only

resource = pytest.importorskip("resource", reason="needs a system with limits of a process")


@contextmanager
def limited(name: str, soft: int) -> Iterator[None]:
    """Sets a limit of this process for the block."""
    number = getattr(resource, name)
    before = resource.getrlimit(number)
    resource.setrlimit(number, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(number, before)


@pytest.fixture(autouse=True)
def no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the machine's own groups out."""
    monkeypatch.setattr(module, "group_folders", lambda controller: [])


@pytest.mark.parametrize(
    ("name", "soft", "level", "told", "remedy"),
    [
        ("RLIMIT_NOFILE", 128, "fault", "128 files (ulimit -n)", "ulimit -n 65536"),
        ("RLIMIT_NOFILE", 512, "warn", "512 files (ulimit -n)", "ulimit -n 65536"),
        ("RLIMIT_NPROC", 32, "fault", "32 processes and threads", "ulimit -u 4096"),
        ("RLIMIT_NPROC", 300, "warn", "300 processes and threads", "ulimit -u 4096"),
        ("RLIMIT_FSIZE", 1 << 20, "fault", "longer than 1.0 MiB", "ulimit -f unlimited"),
        ("RLIMIT_FSIZE", 4 << 30, "warn", "longer than 4.0 GiB", "ulimit -f unlimited"),
        ("RLIMIT_AS", 32 << 30, "warn", "32.0 GiB of addresses", "ulimit -v unlimited"),
        ("RLIMIT_CPU", 90_000, "warn", "after 90000 s", "ulimit -t unlimited"),
    ],
)
def test_a_low_limit_is_named(name, soft, level, told, remedy):
    with limited(name, soft):
        found = fault_of(check_process_limits, level=level)
    assert told in found.found and remedy in found.remedy


@pytest.mark.parametrize(("cuda", "level"), [("13.0", "fault"), (None, "warn")])
def test_few_addresses_are_a_fault_beside_cuda(monkeypatch, cuda, level):
    # Not set for this process, which has taken more already.
    limits = {"RLIMIT_AS": float(4 << 30)}
    monkeypatch.setattr(module, "soft_limit", lambda name: limits.get(name, float("inf")))
    monkeypatch.setattr(module, "torch_build", lambda: TorchBuild("2.13.0", cuda))
    assert "4.0 GiB of addresses" in fault_of(check_process_limits, level=level).found


def test_locked_memory_counts_beside_infiniband_only(monkeypatch, tmp_path):
    (tmp_path / "mlx5_0").mkdir()
    limits = {"RLIMIT_MEMLOCK": float(64 << 10)}
    monkeypatch.setattr(module, "soft_limit", lambda name: limits.get(name, float("inf")))
    monkeypatch.setattr(module, "INFINIBAND", tmp_path / "none")
    assert only(check_process_limits).level == "ok"
    monkeypatch.setattr(module, "INFINIBAND", tmp_path)
    assert "64.0 KiB of memory may be locked" in fault_of(check_process_limits, level="warn").found


@pytest.mark.parametrize(("now", "level"), [(30, "fault"), (0, "warn")])
def test_the_containers_limit_of_processes_is_read(monkeypatch, tmp_path, now, level):
    monkeypatch.setattr(module, "group_folders", processors.group_folders)
    monkeypatch.setattr(processors, "CGROUPS", tmp_path)
    monkeypatch.setattr(processors, "OWN_CGROUPS", tmp_path / "own")
    (tmp_path / "own").write_text("0::/job\n")
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "pids.max").write_text("80\n")
    (tmp_path / "job" / "pids.current").write_text(f"{now}\n")
    found = fault_of(check_process_limits, level=level)
    assert f"{80 - now} more processes" in found.found and "--pids-limit" in found.remedy


def test_limits_that_are_high_are_one_line(monkeypatch):
    monkeypatch.setattr(module, "soft_limit", lambda name: float("inf"))
    assert only(check_process_limits).found.startswith("files unlimited, processes unlimited")


def test_the_check_needs_no_file():
    assert list(check_process_limits(Path("/no/such/folder")))
