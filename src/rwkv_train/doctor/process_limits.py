"""Checks of the limits that a shell, a batch system or a container sets for a process."""

from __future__ import annotations

import sys
from pathlib import Path

from rwkv_train.doctor.findings import Answers, Finding, bytes_text, fault, good, skipped, warning
from rwkv_train.doctor.python_packages import torch_build
from rwkv_train.processors import group_folders

INFINIBAND = Path("/sys/class/infiniband")
# Files: shards, workers and connections of a run; processes: threads count as such.
FEWEST_FILES, FEW_FILES = 256, 1024
FEWEST_PROCESSES, FEW_PROCESSES = 64, 512
SMALLEST_FILE_BYTES = 1 << 30
# CUDA reserves that many addresses before anything is computed; on a CPU a small run needs less.
CUDA_ADDRESSES_BYTES, CPU_ADDRESSES_BYTES = 16 << 30, 2 << 30
SMALLEST_LOCKED_BYTES = 64 << 20


def check_process_limits(folder: Path) -> Answers:
    """Yields limits of files, processes, addresses, file sizes and locked memory."""
    if sys.platform == "win32":
        yield skipped("this system has no such limits")
        return
    faults = [*_open_files(), *_processes(), *_sizes()]
    yield from faults
    if not faults:
        yield good(
            f"files {_told('RLIMIT_NOFILE')}, processes {_told('RLIMIT_NPROC')}, "
            f"addresses {_told('RLIMIT_AS', in_bytes=True)}, "
            f"size of a file {_told('RLIMIT_FSIZE', in_bytes=True)}"
        )


def soft_limit(name: str) -> float:
    """Returns the limit that holds for this process, such as RLIMIT_NOFILE; infinite: none."""
    import resource

    number = getattr(resource, name, None)
    if number is None:
        return float("inf")
    soft: int = resource.getrlimit(number)[0]
    return float("inf") if soft == resource.RLIM_INFINITY else float(soft)


def _open_files() -> list[Finding]:
    files = soft_limit("RLIMIT_NOFILE")
    if files >= FEW_FILES:
        return []
    report = fault if files < FEWEST_FILES else warning
    return [
        report(
            f"a process may open {files:.0f} files (ulimit -n), and a run with workers needs "
            f"{FEW_FILES}",
            "ulimit -n 65536; in a container: docker run --ulimit nofile=65536",
        )
    ]


def _processes() -> list[Finding]:
    found = []
    processes = soft_limit("RLIMIT_NPROC")
    if processes < FEW_PROCESSES:
        report = fault if processes < FEWEST_PROCESSES else warning
        found.append(
            report(
                f"a user may run {processes:.0f} processes and threads (ulimit -u)",
                "ulimit -u 4096; or ask for more in /etc/security/limits.conf",
            )
        )
    for group in group_folders("pids"):
        most, now = _number(group / "pids.max"), _number(group / "pids.current")
        if most is not None and most - (now or 0) < FEW_PROCESSES:
            report = fault if most - (now or 0) < FEWEST_PROCESSES else warning
            found.append(
                report(
                    f"the container may start {most - (now or 0):.0f} more processes and threads",
                    "docker update --pids-limit 4096 CONTAINER",
                )
            )
            break
    return found


def _sizes() -> list[Finding]:
    found = []
    size = soft_limit("RLIMIT_FSIZE")
    if size < float("inf"):
        report = fault if size < SMALLEST_FILE_BYTES else warning
        found.append(
            report(
                f"files longer than {bytes_text(size)} cannot be written (ulimit -f), and a "
                "checkpoint may be longer",
                "ulimit -f unlimited",
            )
        )
    addresses = soft_limit("RLIMIT_AS")
    if addresses < float("inf"):
        build = torch_build()
        needed = CUDA_ADDRESSES_BYTES if build and build.cuda else CPU_ADDRESSES_BYTES
        report = fault if addresses < needed else warning
        found.append(
            report(
                f"a process may use {bytes_text(addresses)} of addresses (ulimit -v), of which "
                "torch reserves far more than it uses",
                "ulimit -v unlimited",
            )
        )
    locked = soft_limit("RLIMIT_MEMLOCK")
    if locked < SMALLEST_LOCKED_BYTES and INFINIBAND.is_dir() and any(INFINIBAND.iterdir()):
        found.append(
            warning(
                f"{bytes_text(locked)} of memory may be locked (ulimit -l), and InfiniBand needs "
                "more",
                "ulimit -l unlimited; in a container: docker run --ulimit memlock=-1",
            )
        )
    seconds = soft_limit("RLIMIT_CPU")
    if seconds < float("inf"):
        found.append(
            warning(
                f"a process is ended after {seconds:.0f} s of processor time (ulimit -t)",
                "ulimit -t unlimited",
            )
        )
    return found


def _told(name: str, *, in_bytes: bool = False) -> str:
    limit = soft_limit(name)
    if limit == float("inf"):
        return "unlimited"
    return bytes_text(limit) if in_bytes else f"{limit:.0f}"


def _number(path: Path) -> float | None:
    """Returns the number in a file of a group, None where it has none, or no limit."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return float(text) if text.isdigit() else None
