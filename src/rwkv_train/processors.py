"""Tells which processors and cards this process may use, and its threads how to wait.

Standard library only: the settings are read when torch loads OpenMP, so they come before it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
PROCESSORS = Path("/proc/cpuinfo")
# How often a thread of libgomp looks whether the others are done before it sleeps. Its default,
# some milliseconds, takes the processor from those it waits for where another program runs too;
# sleeping at once costs an idle machine a wake-up at every parallel loop (benchmarks/RESULTS.md).
SPINS_BEFORE_SLEEP = 1_000


def usable_processors() -> int:
    """Returns how many processors this process may keep busy, at least 1.

    Those it may run on, or fewer where a container's or a batch job's quota allows less time.
    """
    count = _processors_allowed()
    quota = min(_quotas(), default=float(count))
    # Not rounded up: threads that use up a quota all stand still for the rest of its period.
    return max(1, min(count, int(quota)))


def prepare_threads() -> None:
    """Sets how OpenMP's threads wait and, under a quota, how many there are; before torch's import.

    What the user has set stays.
    """
    policies = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
    if not policies & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPINS_BEFORE_SLEEP)
    # Without a quota torch knows better: it leaves out the second threads of cores.
    if usable_processors() < _processors_allowed():
        os.environ.setdefault("OMP_NUM_THREADS", str(usable_processors()))


def visible_gpus() -> list[str] | None:
    """Returns the cards that CUDA_VISIBLE_DEVICES names, None where it is not set.

    Words that stand for no card, as batch systems write them, are left out with all behind them.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return None
    named = [word.strip() for word in given.split(",")]
    hidden = ("", "-1", "NoDevFiles", "none", "void")
    return named[: next((n for n, word in enumerate(named) if word in hidden), len(named))]


def processor_quota() -> float | None:
    """Returns how many processors' worth of time the quotas allow, None where there are none."""
    return min(_quotas(), default=None)


def group_folders(controller: str) -> Iterator[Path]:
    """Yields the folders of this process's control groups for "cpu", "memory" or "pids".

    Of both versions of groups, and of the groups above; a folder need not exist.
    """
    for line in _text(OWN_CGROUPS).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUPS / controllers if controllers else CGROUPS
        group = root / path.strip("/")
        # In a container the path may be the host's, which does not exist inside.
        for folder in (group, *group.parents):
            yield folder
            if folder == root:
                break
        if controllers:
            yield CGROUPS / controller


def processor_name() -> str:
    """Returns the model of the processor as Linux names it; "" where it does not."""
    return _processor_facts().get("model name", "")


def vendor_and_family() -> tuple[str, int]:
    """Returns a processor's maker and family as Linux names them; "" and 0 where it does not."""
    facts = _processor_facts()
    family = facts.get("cpu family", "")
    return facts.get("vendor_id", ""), int(family) if family.isdigit() else 0


def processor_features() -> set[str]:
    """Returns what the processor can do, in Linux's short names; none where it does not tell."""
    facts = _processor_facts()
    # Of x86, or of ARM.
    return set((facts.get("flags") or facts.get("Features", "")).split())


def _processor_facts() -> dict[str, str]:
    """Returns what Linux tells of the first processor; machines have one kind."""
    lines = _text(PROCESSORS).partition("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _processors_allowed() -> int:
    """Returns the number of processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas() -> Iterator[float]:
    """Yields the processors' worth of time that this process's groups and those above may use."""
    for folder in group_folders("cpu"):
        yield from _quota(folder)


def _quota(folder: Path) -> Iterator[float]:
    """Yields the quota of a group of either version, if it has one."""
    words = _text(folder / "cpu.max").split() or [
        _text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
    ]
    # "max" and -1 stand for no limit.
    if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]) > 0:
        yield int(words[0]) / int(words[1])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
