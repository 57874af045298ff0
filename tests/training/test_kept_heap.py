"""The heap that a run on a CPU keeps from step to step: page faults, limits, what it says."""

from __future__ import annotations

import json
import platform
from types import SimpleNamespace

import pytest

from rwkv_train.training import kept_heap, run
from tests.training.runs import start

GLIBC = platform.libc_ver()[0] == "glibc"
# What a step may take once its memory is there; without the heap it is thousands.
MOST_FAULTS = 32


@pytest.mark.skipif(not GLIBC, reason="only glibc's heap can be kept")
def test_steps_with_a_kept_heap_take_no_page_faults_and_a_fork_can_give_it_back():
    ended = start("tests.training.heap_steps")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["before"] > 10 * MOST_FAULTS
    assert found["kept"] <= MOST_FAULTS
    assert found["another length"] <= MOST_FAULTS
    # Not by faults: what is left of the heap may serve a fork's steps, or not, as it lies.
    assert found["given back"] > 32 << 20
    assert found["text"].startswith("kept from step to step")


@pytest.fixture
def allocator(monkeypatch):
    """Replaces the C library: nothing is set in this process, calls are recorded."""
    calls: list[tuple] = []

    class Library:
        block = 1 << 40

        def mallopt(self, option, value):
            calls.append(("mallopt", option, value))
            return 1

        def malloc(self, size):
            calls.append(("malloc", size))
            return self.block

        def madvise(self, begin, length, advice):
            calls.append(("madvise", begin, length))
            return 0

        def free(self, block):
            calls.append(("free", block))

        def malloc_trim(self, pad):
            calls.append(("malloc_trim", pad))

    library = Library()
    library.calls = calls
    texts = {kept_heap._HUGE_PAGES: "always [madvise] never", kept_heap._OVERCOMMIT: "0\n"}
    library.texts = texts
    monkeypatch.setattr(kept_heap, "_libc", lambda: library)
    monkeypatch.setattr(kept_heap, "_is_glibc", lambda: True)
    monkeypatch.setattr(kept_heap, "_text", lambda path: texts.get(path, ""))
    monkeypatch.setattr(kept_heap, "_kept", {"heap": False})
    monkeypatch.setattr(kept_heap, "variables", lambda: {})
    return library


def names(library) -> list[str]:
    return [call[0] for call in library.calls]


def test_the_grown_part_is_freed_again_and_lies_inside_the_block(allocator):
    allocator.block += 16
    assert kept_heap.keep_heap() == "kept from step to step, huge pages"
    assert names(allocator) == ["mallopt"] * 3 + ["malloc", "madvise", "free"]
    (_, size), (_, begin, length), (_, freed) = allocator.calls[3:]
    assert freed == allocator.block
    assert allocator.block < begin and begin + length <= allocator.block + size
    assert begin % 4096 == 0 and length % 4096 == 0


@pytest.mark.parametrize(
    ("path", "text"),
    [("_HUGE_PAGES", "always madvise [never]"), ("_HUGE_PAGES", ""), ("_OVERCOMMIT", "2\n")],
)
def test_no_memory_is_asked_for_where_the_system_would_not_back_it(allocator, path, text):
    allocator.texts[getattr(kept_heap, path)] = text
    assert kept_heap.keep_heap() == "kept from step to step, ordinary pages"
    assert names(allocator) == ["mallopt"] * 3


def test_a_limit_of_addresses_leaves_ordinary_pages(allocator):
    allocator.block = None
    assert kept_heap.keep_heap() == "kept from step to step, ordinary pages"


@pytest.mark.parametrize(
    "given", [{"MALLOC_TRIM_THRESHOLD_": "1"}, {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=1"}]
)
def test_settings_of_the_user_stay(allocator, monkeypatch, given):
    monkeypatch.setattr(kept_heap, "variables", lambda: given)
    assert "environment" in kept_heap.keep_heap()
    kept_heap.give_back_heap()
    assert allocator.calls == []


def test_a_worker_gives_back_only_what_was_kept(allocator):
    kept_heap.give_back_heap()
    assert allocator.calls == []
    kept_heap.keep_heap()
    allocator.calls.clear()
    kept_heap.give_back_heap()
    assert names(allocator) == ["mallopt"] * 4 + ["malloc_trim"]


@pytest.mark.parametrize(
    ("hardware", "lines"),
    [
        ({"accelerator": "gpu", "keep_heap": True}, []),
        (
            {"accelerator": "cpu", "keep_heap": False},
            [("heap", "given back to the system after every step")],
        ),
        (
            {"accelerator": "cpu", "keep_heap": True},
            [("heap", "kept from step to step, huge pages")],
        ),
    ],
)
def test_a_run_keeps_its_heap_on_a_cpu_unless_told_otherwise(allocator, hardware, lines):
    assert run._heap(SimpleNamespace(hardware=SimpleNamespace(**hardware))) == lines
    assert bool(allocator.calls) == (len(lines) == 1 and "kept" in lines[0][1])
