"""Checks of the compiled kernels: their cache, and that they can be built and loaded."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rwkv_train.compiler import cache_folder
from rwkv_train.config.versions import VERSIONS
from rwkv_train.doctor.findings import (
    Answers,
    Finding,
    bytes_text,
    fault,
    good,
    in_one_line,
    skipped,
    warning,
)
from rwkv_train.errors import BackendError
from rwkv_train.ops.native.build_lock import WORK_PREFIX, lock_holder
from rwkv_train.processors import prepare_threads, usable_processors

# A build takes a minute or two; a process that builds for so long hangs.
LONGEST_BUILD_S = 900.0
# Of one library with what its compiler needs on the way.
NEEDED_BYTES = 256 << 20
# Old libraries are never deleted, and small; this many are worth a word.
_LARGE_CACHE_BYTES = 2 << 30
# What every model calls besides what its version's row names.
_OTHER_OPERATORS = ("embedding_norm", "head_loss", "adamw")


def check_cache(folder: Path) -> Answers:
    """Yields where compiled kernels lie, whether they can be written there, and dead locks."""
    if os.name != "posix":
        yield skipped("kernels are built on Linux and macOS only")
        return
    try:
        cache = cache_folder()
    except BackendError as error:
        yield fault(in_one_line(str(error)), "chmod u+rwx ~ ~/.cache, or set HOME or TMPDIR")
        return
    quoted = shlex.quote(str(cache))
    found = [*_place_faults(cache, quoted), *_locks(cache)]
    size = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    if size > _LARGE_CACHE_BYTES:
        found.append(warning(f"{cache} holds {bytes_text(size)} of old kernels", f"rm -r {quoted}"))
    yield from found
    if not found:
        libraries = sum(1 for _ in cache.rglob("*.so"))
        yield good(f"{cache}: {libraries} libraries, {bytes_text(size)}, writable", size_bytes=size)


def _place_faults(cache: Path, quoted: str) -> Iterator[Finding]:
    try:
        with tempfile.TemporaryFile(dir=cache) as probe:
            probe.write(bytes(1 << 16))
            probe.flush()
    except OSError as error:
        yield fault(
            f"{cache} cannot be written: {error.strerror}", f"rm -r {quoted}; df -h {quoted}"
        )
        return
    usual = Path.home() / ".cache" / "rwkv_kernels"
    if cache != usual:
        yield warning(
            f"{usual} cannot be written, so that kernels lie in {cache} and are built anew when "
            "that is cleaned",
            f"mkdir -p {shlex.quote(str(usual))}; ls -ld {shlex.quote(str(usual.parent))}",
        )
    if os.statvfs(cache).f_flag & getattr(os, "ST_NOEXEC", 0):
        yield fault(
            f"{cache} is on a file system from which no library can be loaded (noexec)",
            "set HOME to a folder elsewhere",
        )
    free = shutil.disk_usage(cache).free
    if free < NEEDED_BYTES:
        yield fault(
            f"{cache} has {bytes_text(free)} free, and a build needs {bytes_text(NEEDED_BYTES)}",
            f"df -h {quoted}, and free some room",
        )


def _locks(cache: Path) -> Iterator[Finding]:
    """Yields what builders have left behind that died, and those that build for too long."""
    stale: dict[str, list[Path]] = {}
    for lock in sorted([cache / "lock", *cache.glob("*/lock")]):
        try:
            holder = lock_holder(lock) if lock.is_file() else None
            age = time.time() - lock.stat().st_mtime if holder else 0.0
        except OSError as error:
            yield warning(f"{lock} cannot be read: {error.strerror}", f"rm {lock}")
            continue
        if holder is None:
            continue
        owner, held = holder
        if not held:
            stale.setdefault(owner, []).append(lock)
        elif age > LONGEST_BUILD_S:
            yield fault(
                f"{lock} is held by {owner} for {age / 60:.0f} minutes, and every run waits for it",
                f"kill {owner.split()[1]}" if owner.startswith("process ") else "end that process",
            )
        else:
            yield warning(f"{owner} builds kernels right now", "wait for it, then try again")
    for owner, locks in stale.items():
        count = "stale lock" if len(locks) == 1 else f"{len(locks)} stale locks, the first one"
        remains = [left for lock in locks for left in lock.parent.glob(f"{WORK_PREFIX}*")]
        yield warning(
            f"{count} {locks[0]}: {owner} died while it built; the next build takes over",
            f"rm -r {shlex.join(map(str, [*locks, *remains]))}",
        )


def check_kernels(folder: Path) -> Answers:
    """Yields, for CPUs and the cards that are there, how long building and loading took."""
    if os.name != "posix":
        yield skipped("kernels are built on Linux and macOS only")
        return
    prepare_threads()
    yield "import torch"
    import torch

    yield from _kernels_for("cpu")
    if torch.cuda.is_available():
        yield from _kernels_for("cuda")


def _kernels_for(device: str) -> Answers:
    from rwkv_train.ops.native import build
    from rwkv_train.ops.native.prebuild import prebuild

    operators = [op for op in _operators() if build.has_sources(op, device)]
    targets = list(dict.fromkeys(build.target_of(op, device) for op in operators))
    names = ", ".join(target.name for target in targets)
    try:
        missing = [target for target in targets if build.needs_building(target)]
    except BackendError as error:
        yield fault(in_one_line(str(error), 400), "see the checks of the compiler above")
        return
    yield f"build {', '.join(t.name for t in missing)} for {device}" if missing else "load"
    began = time.perf_counter()
    prebuild(operators, device, usable_processors())
    reasons = dict.fromkeys(
        reason for op in operators if (reason := build.load(op, device)) is not None
    )
    seconds = time.perf_counter() - began
    for reason in reasons:
        yield fault(
            f"on {device} without kernels, several times slower: {in_one_line(reason, 400)}",
            f"rm -r {shlex.quote(str(cache_folder()))}, then: rwkv-doctor --only kernels",
        )
    if not reasons:
        built = f"{len(missing)} of them built in" if missing else "loaded in"
        yield good(
            f"{device}: {names} of these sources; {built} {seconds:.1f} s",
            built=[target.name for target in missing],
            seconds=round(seconds, 2),
        )


def _operators() -> list[str]:
    """Returns the operators that runs of all versions call."""
    names = [op for row in VERSIONS.values() for op in (row.operator, *row.layer_operators)]
    return list(dict.fromkeys([*names, *_OTHER_OPERATORS]))
