"""Calls that share a piece of memory for their frames return, raise and nest as others do."""

from __future__ import annotations

import resource

import pytest

from tests.frame_memory import with_frame_memory

DEPTHS, CALLS = 700, 20


def leaf() -> None:
    """Needs a frame."""


def deep(depth: int, loop: int) -> None:
    """Calls `leaf` so often, that many calls below this one."""
    if depth:
        deep(depth - 1, loop)
        return
    for _ in range(loop):
        leaf()


def page_faults() -> int:
    """How often a loop of calls met a new page, at any depth; memory that stays is met once."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for depth in range(DEPTHS):
        deep(depth, CALLS)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_no_call_at_any_depth_maps_memory_of_its_own() -> None:
    with_frame_memory(page_faults)
    # The largest depths have touched the piece's pages in the call before.
    assert with_frame_memory(page_faults) < DEPTHS


def test_what_it_returns_and_raises_comes_through() -> None:
    assert with_frame_memory(lambda: with_frame_memory(lambda: 3)) == 3
    with pytest.raises(ZeroDivisionError):
        with_frame_memory(lambda: 1 // 0)
