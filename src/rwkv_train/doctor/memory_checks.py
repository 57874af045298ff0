"""Checks of memory: what is free, what a container may use, swap, huge pages."""

from __future__ import annotations

from pathlib import Path

from rwkv_train.doctor.findings import Answers, Finding, bytes_text, fault, good, skipped, warning
from rwkv_train.processors import group_folders

MEMINFO = Path("/proc/meminfo")
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
SMALLEST_BYTES, SMALL_BYTES = 1 << 30, 4 << 30
# Of swap in use, above which the machine is busy with moving pages.
_MUCH_SWAP = 0.5


def check_memory_room(folder: Path) -> Answers:
    """Yields free memory, within the container's limit, and swap."""
    told = _meminfo()
    if "MemAvailable" not in told:
        yield skipped("this system does not tell")
        return
    limit = _group_room()
    available = min(told["MemAvailable"], limit if limit is not None else told["MemAvailable"])
    by = " within the container's limit" if limit is not None and limit == available else ""
    found = []
    if available < SMALL_BYTES:
        report = fault if available < SMALLEST_BYTES else warning
        found.append(
            report(
                f"{bytes_text(available)} of memory are free{by}: a run ends without a word when "
                "there is none",
                "end other programs; in a container: docker update --memory 16g CONTAINER",
            )
        )
    found += _swap_findings(told)
    if _text(OVERCOMMIT).strip() == "2":
        found.append(
            warning(
                "memory counts as used when it is asked for (vm.overcommit_memory=2), so that "
                "large models are refused early, and the heap has no huge pages",
                "sudo sysctl vm.overcommit_memory=0",
            )
        )
    yield from found
    if not found:
        yield good(
            f"{bytes_text(available)} free of {bytes_text(told.get('MemTotal', 0))}{by}",
            available_bytes=available,
        )


def check_huge_pages(folder: Path) -> Answers:
    """Yields whether the heap, which a run on a CPU keeps, can lie on huge pages."""
    setting = _text(HUGE_PAGES)
    if not setting:
        yield skipped("this system has none, or does not tell")
    elif "[never]" in setting:
        yield warning(
            "transparent huge pages are off: steps on a CPU are some percent slower",
            f"echo madvise | sudo tee {HUGE_PAGES}",
        )
    else:
        chosen = setting.partition("[")[2].partition("]")[0]
        yield good(f"{chosen}: a run's heap lies on huge pages")


def _swap_findings(told: dict[str, int]) -> list[Finding]:
    total, free = told.get("SwapTotal", 0), told.get("SwapFree", 0)
    if total == 0 or (total - free) / total < _MUCH_SWAP:
        return []
    return [
        warning(
            f"{bytes_text(total - free)} of {bytes_text(total)} swap are in use: memory was short",
            "end other programs, then: sudo swapoff -a && sudo swapon -a",
        )
    ]


def _group_room() -> int | None:
    """Returns what this process's groups may still use, None where they have no limit."""
    rooms = []
    for group in group_folders("memory"):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = _text(group / limit_name).strip(), _text(group / used_name).strip()
            # Version 1 writes no limit as a number beyond all machines.
            if limit.isdigit() and int(limit) < 1 << 60:
                rooms.append(max(0, int(limit) - (int(used) if used.isdigit() else 0)))
    return min(rooms, default=None)


def _meminfo() -> dict[str, int]:
    """Returns what the system tells of its memory, in bytes."""
    found = {}
    for line in _text(MEMINFO).splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            found[name] = int(words[0]) << 10
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
