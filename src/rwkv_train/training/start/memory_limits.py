"""Memory that a process may still take: what is free, and what limits say.

On a CPU all processes of a machine share what is there; limits of a process (`ulimit -v`, -d) are
each one's own. Memory that the system gives back when it is asked, its cache of files, counts as
free, and so does swap.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_ROOT = Path("/")
# What the libraries that are still to be imported, threads and stacks take of the addresses.
ADDRESSES_TO_COME = 600 << 20


class MemoryLimit(NamedTuple):
    """Bytes that the processes of a machine may hold together, or one alone.

    free: what can be had, with what these processes hold already.
    name: what sets the limit, in words that follow "is" or "leaves".
    is_shared: by all processes of the run on this machine.
    counts_addresses: it counts addresses, of which libraries take many that are no memory.
    """

    free: int
    name: str
    is_shared: bool
    counts_addresses: bool = False


def host_limits(processes: int, root: Path = _ROOT) -> list[MemoryLimit]:
    """Returns every limit of the host's memory that can be found out.

    processes: of this run on this machine, which hold as much as this one.
    root: of the file system that tells.
    """
    own = processes * resident_bytes(root)
    shared = [*_machine(root, own), *_control_groups(root, own)]
    return [MemoryLimit(free, name, True) for free, name in shared] + _process_limits(root)


def resident_bytes(root: Path = _ROOT) -> int:
    """Returns the bytes of memory that this process holds; 0 where that is not told."""
    try:
        pages = (root / "proc/self/statm").read_text().split()
    except OSError:
        return 0
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_resident_bytes(root: Path = _ROOT) -> int:
    """Returns the most memory that this process has held; 0 where that is not told."""
    return _kilobytes(root / "proc/self/status").get("VmHWM", 0)


def _machine(root: Path, own: int) -> list[tuple[int, str]]:
    told = _kilobytes(root / "proc/meminfo")
    if "MemAvailable" in told:
        free = told["MemAvailable"] + told.get("SwapFree", 0)
        return [(min(free + own, told["MemTotal"] + told.get("SwapTotal", 0)), "this machine")]
    if "MemTotal" in told:
        return [(told["MemTotal"] + told.get("SwapTotal", 0), "this machine")]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return [(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "this machine")]
    return []


def _control_groups(root: Path, own: int) -> list[tuple[int, str]]:
    """Returns what the groups leave that this process is in, of both versions of the interface."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        unified = controllers == ""
        if not unified and "memory" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("" if unified else "memory")
        # Inside a container its own group is the root, whatever the name says.
        group = base / name.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(base):
                left = _left_by_group(folder, own, unified=unified)
                found += [] if left is None else [(left, "the control group of this process")]
    return found


def _left_by_group(folder: Path, own: int, *, unified: bool) -> int | None:
    names = (
        ("memory.max", "memory.current")
        if unified
        else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    limit, used = (_number(folder / name) for name in names)
    if limit is None:
        return None
    cached = _fields(folder / "memory.stat")
    # Pages of files are given back when memory is short.
    held = max(0, (used or 0) - cached.get("inactive_file", 0) - cached.get("active_file", 0))
    swap = _number(folder / "memory.swap.max") or 0
    return min(limit, max(0, limit - held) + own) + swap


def _process_limits(root: Path) -> list[MemoryLimit]:
    """Returns what `ulimit` leaves to this process."""
    try:
        import resource
    except ImportError:
        # Not on Windows.
        return []
    held = _kilobytes(root / "proc/self/status")
    found = []
    for name, told, flag in (
        (resource.RLIMIT_AS, "VmSize", "ulimit -v"),
        (resource.RLIMIT_DATA, "VmData", "ulimit -d"),
    ):
        limit = resource.getrlimit(name)[0]
        if limit != resource.RLIM_INFINITY and told in held:
            free = max(0, limit - held[told] - ADDRESSES_TO_COME)
            words = f"{flag} {limit >> 10}"
            found.append(MemoryLimit(free, words, is_shared=False, counts_addresses=True))
    return found


def _kilobytes(path: Path) -> dict[str, int]:
    """Returns the fields of a file of /proc that are in kB, in bytes."""
    return {name.rstrip(":"): 1024 * value for name, value in _fields(path).items()}


def _fields(path: Path) -> dict[str, int]:
    """Returns the whole numbers that follow a word at the beginning of a line."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split()[:2] for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _number(path: Path) -> int | None:
    """Returns the number a file holds; None without one, as where it says max."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
