"""A quota below one processor, a wrong number of threads and busy neighbours are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkv_train import processors
from rwkv_train.doctor import processor_checks as module
from rwkv_train.doctor.processor_checks import check_features, check_load, check_processors
from tests.doctor.planted import fault_of, only


@pytest.fixture
def quota(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Puts this process into a group with a quota, on a machine of four processors."""
    monkeypatch.setattr(processors, "CGROUPS", tmp_path)
    monkeypatch.setattr(processors, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(processors, "_processors_allowed", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "own").write_text("0::/job\n")
    (tmp_path / "job").mkdir()

    def set_quota(words: str) -> None:
        (tmp_path / "job" / "cpu.max").write_text(words + "\n")

    return set_quota


def test_half_a_processor_is_a_fault(quota):
    quota("50000 100000")
    found = fault_of(check_processors)
    assert "may use 0.5 of a processor" in found.found
    assert found.remedy.startswith("docker update --cpus 2")


def test_a_quota_of_some_processors_is_told(quota):
    quota("250000 100000")
    found = only(check_processors)
    assert found.level == "ok" and "by a quota of 2.5" in found.found
    assert found.measured["processors"] == 2


@pytest.mark.parametrize(
    ("threads", "told"), [("1", "leaves the others idle"), ("16", "more threads than there are")]
)
def test_threads_that_do_not_fit_are_named(quota, monkeypatch, threads, told):
    quota("max 100000")
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    found = fault_of(check_processors, level="warn")
    assert told in found.found and found.remedy == "unset OMP_NUM_THREADS"
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert only(check_processors).level == "ok"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A machine whose /proc says so much was done before and after the watch."""
    monkeypatch.setattr(module, "PROC", tmp_path)
    (tmp_path / "17").mkdir()

    def tell(ticks: str, program: int) -> None:
        (tmp_path / "stat").write_text(f"cpu  {ticks} 0 0\ncpu0 0\n")
        row = f"17 (spins (a) lot) R {'0 ' * 10}{program} 0 0\n"
        (tmp_path / "17" / "stat").write_text(row)

    def set_up(before: str, after: str) -> None:
        tell(before, 1)
        monkeypatch.setattr(module.time, "sleep", lambda seconds: tell(after, 90))

    return set_up


def test_a_program_that_keeps_the_processors_busy_is_named(machine):
    machine("0 0 0 0 0 0 0 0", "90 0 0 10 0 0 0 0")
    found = fault_of(check_load, level="warn")
    assert "90% of the processors busy" in found.found
    assert "spins (a) lot (process 17)" in found.found


def test_a_host_that_gives_the_processors_to_others_is_named(machine):
    machine("0 0 0 0 0 0 0 0", "10 0 0 60 0 0 0 30")
    assert "gives 30%" in fault_of_steal()


def fault_of_steal() -> str:
    return " ".join(f.found for f in check_load(Path()) if f.level == "warn")


def test_an_idle_machine_is_sound(machine):
    machine("5 0 0 5 0 0 0 0", "6 0 0 104 0 0 0 0")
    assert only(check_load).found == "1% busy"


def test_a_processor_without_avx2_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(processors, "PROCESSORS", tmp_path / "cpuinfo")
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    (tmp_path / "cpuinfo").write_text("model name : Some\nflags\t: fpu sse4_2 avx\n")
    assert "no AVX2" in fault_of(check_features, level="warn").found
    (tmp_path / "cpuinfo").write_text("flags\t: avx2 avx512f\n")
    assert "without units for it" in only(check_features).found
    (tmp_path / "cpuinfo").write_text("flags\t: avx2 avx512f avx512_bf16\n")
    assert only(check_features).found == "avx2, avx512f, avx512_bf16"
