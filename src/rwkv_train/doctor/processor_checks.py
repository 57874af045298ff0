"""Checks of processors: how many may be used, who else uses them, what they can."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path

from rwkv_train.doctor.findings import Answers, fault, good, skipped, warning
from rwkv_train.processors import (
    processor_features,
    processor_name,
    processor_quota,
    usable_processors,
)
from rwkv_train.training.environment import variables

PROC = Path("/proc")
# For how long others are watched, and the share of the processors that is worth a word.
WATCHED_S = 0.5
BUSY_SHARE, STOLEN_SHARE = 0.5, 0.1
# What kernels and torch make use of, in the order in which they matter.
_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")


def check_processors(folder: Path) -> Answers:
    """Yields how many processors may be used, a quota below one, and OpenMP's threads."""
    usable, quota = usable_processors(), processor_quota()
    of = f"{usable} of {os.cpu_count()}"
    if quota is not None and quota < 1:
        yield fault(
            f"this container or job may use {quota:g} of a processor, and a run stands still for "
            "the rest of every period",
            "docker update --cpus 2 CONTAINER; or ask the batch system for more",
            processors=usable,
            quota=quota,
        )
        return
    told = f"{of} may be used" + (f", by a quota of {quota:g}" if quota is not None else "")
    threads = variables().get("OMP_NUM_THREADS", "").partition(",")[0]
    if threads.isdigit() and int(threads) != usable:
        few = int(threads) < usable
        yield warning(
            f"{told}, and OMP_NUM_THREADS={threads} "
            f"{'leaves the others idle' if few else 'starts more threads than there are'}",
            "unset OMP_NUM_THREADS",
            processors=usable,
        )
        return
    yield good(f"{told}: {processor_name() or platform.machine()}", processors=usable, quota=quota)


def check_load(folder: Path) -> Answers:
    """Yields who else keeps the processors busy, watched for half a second."""
    before = _times()
    if before is None:
        yield from _average()
        return
    programs = _program_ticks()
    time.sleep(WATCHED_S)
    after = _times()
    assert after is not None, "read a moment ago"
    spent = {name: after[name] - before[name] for name in after}
    total = max(1, sum(spent.values()))
    busy = 1 - (spent["idle"] + spent["iowait"]) / total
    if spent["steal"] / total > STOLEN_SHARE:
        yield warning(
            f"the host gives {spent['steal'] / total:.0%} of this machine's processors to others",
            "wait, or ask for a machine of your own",
        )
    if busy > BUSY_SHARE:
        number, name = _busiest(programs)
        yield warning(
            f"other programs keep {busy:.0%} of the processors busy, most of all {name} "
            f"(process {number})",
            f"ps -fp {number}, and wait for its end",
            busy_share=round(busy, 3),
        )
    else:
        yield good(f"{busy:.0%} busy", busy_share=round(busy, 3))


def check_features(folder: Path) -> Answers:
    """Yields the vector units that kernels use."""
    flags = processor_features()
    if not flags:
        yield skipped("this system does not tell them")
        return
    found = [name for name in _FEATURES if name in flags]
    if platform.machine() in ("x86_64", "AMD64") and "avx2" not in flags:
        yield warning(
            "no AVX2: products on this processor, or in this virtual machine, are slow",
            "choose the host's processor model (QEMU: -cpu host), or another machine",
        )
        return
    has_bf16 = "avx512_bf16" in flags or "amx_bf16" in flags or "bf16" in flags
    bf16 = "" if has_bf16 else "; bf16 is computed without units for it, so leave fp32"
    yield good(f"{', '.join(found)}{bf16}", features=found)


def _average() -> Answers:
    """Yields the load of a system that does not tell where its time goes."""
    count = os.cpu_count() or 1
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):
        yield skipped("this system does not tell")
        return
    if load > BUSY_SHARE * count:
        yield warning(f"{load:.1f} programs run at once on {count} processors", "wait for them")
    else:
        yield good(f"{load:.1f} programs run at once")


def _times() -> dict[str, int] | None:
    """Returns what all processors together have done so far, in ticks."""
    words = _text(PROC / "stat").partition("\n")[0].split()
    if len(words) < 9 or words[0] != "cpu":
        return None
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    return dict(zip(names, map(int, words[1:9])))


def _program_ticks() -> dict[int, tuple[str, int]]:
    """Returns process -> its name and the ticks that it has used, of all but this one."""
    found = {}
    for entry in PROC.glob("[0-9]*/stat"):
        # The name stands in brackets and may hold any character.
        head, _, tail = _text(entry).rpartition(")")
        words = tail.split()
        number = int(entry.parent.name)
        if len(words) > 12 and number != os.getpid():
            found[number] = (head.partition("(")[2], int(words[11]) + int(words[12]))
    return found


def _busiest(before: Mapping[int, tuple[str, int]]) -> tuple[int, str]:
    used = {
        number: (ticks - before[number][1], name)
        for number, (name, ticks) in _program_ticks().items()
        if number in before
    }
    number = max(used, key=lambda n: used[n][0], default=0)
    return number, used[number][1] if used else "one that has ended"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
