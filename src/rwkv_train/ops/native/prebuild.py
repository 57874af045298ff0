"""Builds the libraries of several operators side by side, before any of them is called."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from rwkv_train.compiler import cache_folder
from rwkv_train.errors import BackendError
from rwkv_train.ops.native.build import (
    Target,
    built_library,
    has_sources,
    needs_building,
    target_of,
)
from rwkv_train.ops.native.build_lock import held_lock, say


def prebuild(operators: Sequence[str], device: str, processors: int) -> None:
    """Builds what operators need on "cpu" or "cuda" and the cache lacks, if that is several.

    processors: how many compilers may run at once. What cannot be built is left to the operator's
    first call, which tells why.
    """
    if os.name != "posix":
        return
    with suppress(BackendError):
        targets = _missing(operators, device)
        if len(targets) < 2:
            return
        titles = ", ".join(target.title() for target in targets)
        with held_lock(cache_folder() / "lock", titles):
            # Another process may have built them while this one waited.
            targets = _missing(operators, device)
            if targets:
                say(f"building the {titles} side by side, about a minute, once per machine")
                _build(targets, max(1, processors // len(targets)))


def _missing(operators: Sequence[str], device: str) -> list[Target]:
    """Returns the libraries to be built, each once; one for CUDA needs that for CPUs."""
    needed = {
        target_of(op, kind): None
        for kind in dict.fromkeys(("cpu", device))
        for op in operators
        if has_sources(op, kind)
    }
    return [target for target in needed if needs_building(target)]


def _build(targets: Sequence[Target], jobs: int) -> None:
    """Builds all targets at once, each by so many compilers."""

    def build_one(target: Target) -> None:
        with suppress(BackendError):
            built_library(target, jobs)

    with ThreadPoolExecutor(len(targets)) as pool:
        # The list waits for all of them.
        list(pool.map(build_one, targets))
