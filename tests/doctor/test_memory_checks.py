"""Little memory, within a container too, swap in use and pages that are off are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkv_train import processors
from rwkv_train.doctor import memory_checks as module
from rwkv_train.doctor.memory_checks import check_huge_pages, check_memory_room
from tests.doctor.planted import fault_of, only

MIB = 1 << 10


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A machine with so many MiB free, of so many; its files can be changed."""
    monkeypatch.setattr(module, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(module, "OVERCOMMIT", tmp_path / "overcommit")
    monkeypatch.setattr(module, "HUGE_PAGES", tmp_path / "enabled")
    monkeypatch.setattr(processors, "CGROUPS", tmp_path)
    monkeypatch.setattr(processors, "OWN_CGROUPS", tmp_path / "own")
    (tmp_path / "own").write_text("0::/job\n")
    (tmp_path / "job").mkdir()

    def set_up(free_mib: int, swap_free_mib: int = 1000) -> Path:
        (tmp_path / "meminfo").write_text(
            f"MemTotal: {64_000 * MIB} kB\nMemAvailable: {free_mib * MIB} kB\n"
            f"SwapTotal: {1000 * MIB} kB\nSwapFree: {swap_free_mib * MIB} kB\nHugePages_Total: 0\n"
        )
        return tmp_path

    return set_up


@pytest.mark.parametrize(("free", "level"), [(512, "fault"), (3000, "warn")])
def test_little_memory_is_named(machine, free, level):
    machine(free)
    assert "of memory are free:" in fault_of(check_memory_room, level=level).found


def test_the_containers_limit_counts(machine):
    group = machine(50_000) / "job"
    (group / "memory.max").write_text(f"{2 << 30}\n")
    (group / "memory.current").write_text(f"{(2 << 30) - (100 << 20)}\n")
    found = fault_of(check_memory_room)
    assert "100.0 MiB of memory are free within the container's limit" in found.found
    (group / "memory.max").write_text("max\n")
    assert only(check_memory_room).found == "48.8 GiB free of 62.5 GiB"


def test_swap_in_use_is_named(machine):
    machine(50_000, swap_free_mib=100)
    found = fault_of(check_memory_room, level="warn")
    assert "900.0 MiB of 1000.0 MiB swap are in use" in found.found


def test_memory_that_counts_when_it_is_asked_for_is_named(machine):
    (machine(50_000) / "overcommit").write_text("2\n")
    assert "overcommit_memory=0" in fault_of(check_memory_room, level="warn").remedy


def test_huge_pages_that_are_off_are_named(machine):
    folder = machine(50_000)
    assert only(check_huge_pages).level == "skip"
    (folder / "enabled").write_text("always madvise [never]\n")
    found = fault_of(check_huge_pages, level="warn")
    assert found.remedy == f"echo madvise | sudo tee {folder / 'enabled'}"
    (folder / "enabled").write_text("always [madvise] never\n")
    assert only(check_huge_pages).found.startswith("madvise:")
