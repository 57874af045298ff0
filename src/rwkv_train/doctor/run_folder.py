"""Checks of shared memory and of the file system that holds a run's folder.

What is tried is tried in a folder of its own next to, or above, what will be the run's; it is
removed at the end.
"""

from __future__ import annotations

import errno
import mmap
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rwkv_train.doctor.findings import Answers, Finding, bytes_text, fault, good, skipped, warning
from rwkv_train.errors import TrainerError
from rwkv_train.files import write_atomically
from rwkv_train.training.environment import child_variables
from rwkv_train.training.start.file_systems import IN_MEMORY, existing_parent, file_system
from rwkv_train.training.start.lock_owner import is_alive, read_owner
from rwkv_train.training.start.run_lock import LOCK_FILE, STALE, RunLock

SHARED_MEMORY = Path("/dev/shm")
# Batches travel from the loader's workers, and ranks' sums between cards, through shared memory.
SMALLEST_SHM_BYTES, SMALL_SHM_BYTES = 16 << 20, 1 << 30
# A state is 12 bytes a parameter, weights 2 to 4, and two of them are kept.
SMALLEST_ROOM_BYTES, SMALL_ROOM_BYTES = 256 << 20, 10 << 30
FEWEST_INODES = 1000
# Of the file server's and this machine's; a run tells from file times whether another one lives.
CLOCK_DIFFERENCE_S = 5.0
_PREFIX = ".rwkv-doctor-"
_LEFT_OVER_S = 3600.0
_OTHER_LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        sys.exit(3)
    except OSError:
        sys.exit(4)
"""


def check_shm(folder: Path) -> Answers:
    """Yields the size of shared memory."""
    if not sys.platform.startswith("linux"):
        yield skipped("only Linux has /dev/shm")
        return
    larger = (
        f"sudo mount -o remount,size=8G {SHARED_MEMORY}; in a container: docker run --shm-size=8g"
    )
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
        with tempfile.TemporaryFile(dir=SHARED_MEMORY) as probe:
            probe.write(bytes(1 << 20))
            probe.flush()
    except OSError as error:
        yield fault(f"{SHARED_MEMORY} cannot be written: {error.strerror}", larger)
        return
    told = f"{bytes_text(usage.free)} free of {bytes_text(usage.total)}"
    if usage.free < SMALLEST_SHM_BYTES:
        yield fault(f"{told}: the loader's workers crash with a bus error", larger)
    elif usage.free < SMALL_SHM_BYTES:
        yield warning(f"{told}: too little for several cards, or large batches", larger)
    else:
        yield good(told, free_bytes=usage.free)


def check_temporary(folder: Path) -> Answers:
    """Yields whether there is a folder for temporary files, which compilers and others need."""
    remedy = "export TMPDIR=FOLDER of a disk with some room"
    try:
        place = Path(tempfile.gettempdir())
        with tempfile.NamedTemporaryFile(dir=place) as probe:
            probe.write(bytes(1 << 20))
            probe.flush()
    except OSError as error:
        yield fault(f"no folder for temporary files can be written: {error.strerror}", remedy)
        return
    free = shutil.disk_usage(place).free
    if free < SMALLEST_ROOM_BYTES:
        yield fault(f"{bytes_text(free)} free at {place}, which compilers fill", remedy)
    else:
        yield good(f"{bytes_text(free)} free at {place}", free_bytes=free)


def check_folder(folder: Path) -> Answers:
    """Yields room, inodes and rights where the run's folder is or will be."""
    place = existing_parent(folder)
    quoted = shlex.quote(str(place))
    yield f"look at {place}"
    try:
        if not place.is_dir():
            remedy = f"mv {quoted} {quoted}.old, or choose another folder"
            yield fault(f"{place} is no folder", remedy)
            return
        with own_folder(place) as own:
            write_atomically(own / "probe", bytes(1 << 20))
    except OSError as error:
        yield fault(f"{place} cannot be written: {error.strerror}", writing_remedy(error, place))
        return
    usage, kind, found = shutil.disk_usage(place), file_system(place), []
    if usage.free < SMALL_ROOM_BYTES:
        report = fault if usage.free < SMALLEST_ROOM_BYTES else warning
        found.append(
            report(
                f"{bytes_text(usage.free)} free at {place}, and a model of 0.1 B parameters "
                "needs 4 GB with its states",
                f"df -h {quoted}, and free some room",
            )
        )
    inodes = os.statvfs(place)
    if inodes.f_files and inodes.f_favail < FEWEST_INODES:
        found.append(
            fault(
                f"{inodes.f_favail} inodes are left at {place}, one a file",
                f"df -i {quoted}, and remove files",
            )
        )
    if kind in IN_MEMORY:
        found.append(
            warning(f"{place} is in memory ({kind}) and gone at a restart", "choose another folder")
        )
    found += _run_lock_findings(folder / LOCK_FILE)
    yield from found
    if not found:
        yield good(
            f"{bytes_text(usage.free)} free of {bytes_text(usage.total)} at {place} ({kind})",
            free_bytes=usage.free,
        )


def writing_remedy(error: OSError, place: Path) -> str:
    """Returns what to do where writing at a place has failed so."""
    quoted = shlex.quote(str(place))
    if error.errno == errno.EFBIG:
        return "ulimit -f unlimited"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"df -h {quoted}; df -i {quoted}, and free some room"
    return f"ls -ld {quoted}, and choose another folder: --folder PATH"


def _run_lock_findings(path: Path) -> list[Finding]:
    """Returns what a run.lock in the folder means for the next run."""
    try:
        owner = read_owner(path.read_bytes())
    except OSError:
        return []
    if owner is None:
        return [warning(f"{path} names nobody; the next run takes it over", f"rm {path}")]
    if not owner.in_this_container():
        return [
            warning(
                f"{path} names {owner}, which cannot be asked from here: a start waits up to "
                f"{STALE:.0f} s for a sign of life",
                f"if it has ended: rm {shlex.quote(str(path))}",
            )
        ]
    if is_alive(owner.process):
        return [
            warning(
                f"another run works in {path.parent}: {owner}",
                f"wait for its end, or kill {owner.process}",
            )
        ]
    return [
        warning(
            f"stale lock {path}: {owner}, has ended; the next run takes it over",
            f"rm {shlex.quote(str(path))}",
        )
    ]


def check_files(folder: Path) -> Answers:
    """Yields whether what saving and locking rest on works there."""
    place = existing_parent(folder)
    with own_folder(place) as own:
        yield "rename over a file"
        target = own / "renamed"
        write_atomically(target, b"before")
        with target.open("rb") as opened:
            write_atomically(target, b"after")
            if (target.read_bytes(), opened.read()) != (b"after", b"before"):
                yield fault(
                    f"renaming over a file is not atomic at {place}", "choose another folder"
                )
        yield "map a file into memory"
        with target.open("rb") as opened, suppress(OSError):
            mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ).close()
        difference = abs(target.stat().st_mtime - time.time())
        if difference > CLOCK_DIFFERENCE_S:
            yield warning(
                f"the clock of {place} differs by {difference:.0f} s from this machine's",
                "sudo chronyc makestep, or ntpdate, on both",
            )
        yield "lock a run's folder"
        yield from _lock_answers(own, place)


def _lock_answers(own: Path, place: Path) -> Answers:
    try:
        with RunLock(own):
            command = [sys.executable, "-c", _OTHER_LOCK, str(own / LOCK_FILE)]
            status = subprocess.run(
                command, env=child_variables({}), check=False, capture_output=True
            ).returncode
    except TrainerError as error:
        yield fault(f"a run cannot lock its folder: {error.in_one_line()}", "choose another folder")
        return
    if status == 3:
        yield good(f"renaming is atomic and locks are seen by other processes at {place}")
    else:
        yield warning(
            f"{place} keeps no locks: after a crash the next start waits up to {STALE:.0f} s",
            "mount it with locks (NFS: without nolock), or choose another folder",
        )


@contextmanager
def own_folder(place: Path) -> Iterator[Path]:
    """Yields a new folder there, removed at the end, and removes those of checks that died."""
    for left in place.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _LEFT_OVER_S:
                shutil.rmtree(left, ignore_errors=True)
    own = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)
