"""Checks how fast a run's folder is written and read, past the system's cache."""

from __future__ import annotations

import mmap
import os
import secrets
import statistics
import time
from contextlib import suppress
from pathlib import Path

from rwkv_train.doctor.findings import Answers, bytes_text, fault, good, warning
from rwkv_train.doctor.run_folder import own_folder, writing_remedy
from rwkv_train.files import sync_folder, write_atomically
from rwkv_train.training.start.file_systems import existing_parent

SLOW_DISK_BYTES_PER_S = 20e6
_PROBE_BYTES, _BLOCK_BYTES, _WRITE_LIMIT_S = 64 << 20, 4 << 20, 10.0
_SMALL_FILES = 12


def check_disk_speed(folder: Path) -> Answers:
    """Yields how fast some MB are written and read, past the cache, and small files are saved."""
    place = existing_parent(folder)
    with own_folder(place) as own:
        yield f"write to {place}"
        # Not zeros, which some disks keep as a number.
        block = secrets.token_bytes(_BLOCK_BYTES)
        try:
            written, write_s = _write(own / "large", block)
            small_s = [_seconds_of_save(own / f"small-{n}") for n in range(_SMALL_FILES)]
        except OSError as error:
            yield fault(
                f"writing {bytes_text(_PROBE_BYTES)} at {place} failed: {error.strerror}",
                writing_remedy(error, place),
            )
            return
        yield f"read from {place}"
        read_s, direct, same = _read(own / "large", block)
    if not same:
        yield fault(f"{place} gives back other bytes than were written", "choose another disk")
        return
    rates = written / write_s, written / read_s
    told = (
        f"writes {rates[0] / 1e6:.0f} MB/s, reads {rates[1] / 1e6:.0f} MB/s"
        f"{'' if direct else ' (perhaps from the cache)'}, saves a small file in "
        f"{statistics.median(small_s) * 1e3:.1f} ms"
    )
    measured = {
        "write_bytes_per_s": round(rates[0]),
        "read_bytes_per_s": round(rates[1]),
        "small_file_ms": round(statistics.median(small_s) * 1e3, 2),
        "read_past_cache": direct,
    }
    if min(rates) < SLOW_DISK_BYTES_PER_S:
        yield warning(told, "choose a faster disk, or save less often", **measured)
    else:
        yield good(told, **measured)


def _write(path: Path, block: bytes) -> tuple[int, float]:
    """Returns how much was written until it lay on the disk, and the seconds that took."""
    written, began = 0, time.perf_counter()
    with path.open("wb", buffering=0) as file:
        while written < _PROBE_BYTES and time.perf_counter() - began < _WRITE_LIMIT_S:
            written += file.write(block)
            # Each block to the disk: else a slow one would be met at the end, all at once.
            os.fsync(file.fileno())
    sync_folder(path.parent)
    return written, time.perf_counter() - began


def _seconds_of_save(path: Path) -> float:
    began = time.perf_counter()
    write_atomically(path, b"small")
    return time.perf_counter() - began


def _read(path: Path, block: bytes) -> tuple[float, bool, bool]:
    """Returns the seconds of reading, whether past the system's cache, and whether it is equal."""
    # Aligned to a page, as reading past the cache needs it.
    buffer = mmap.mmap(-1, _BLOCK_BYTES)
    descriptor, direct = _open_past_cache(path)
    seconds, same = 0.0, True
    try:
        while True:
            began = time.perf_counter()
            count = os.readv(descriptor, [buffer])
            seconds += time.perf_counter() - began
            if count == 0:
                return seconds, direct, same
            same = same and buffer[:count] == block[:count]
    finally:
        os.close(descriptor)
        buffer.close()


def _open_past_cache(path: Path) -> tuple[int, bool]:
    """Returns a descriptor, and whether what is read through it comes from the disk."""
    with suppress(OSError, AttributeError):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            probe = mmap.mmap(-1, mmap.PAGESIZE)
            os.readv(descriptor, [probe])
            os.lseek(descriptor, 0, os.SEEK_SET)
            return descriptor, True
        except OSError:
            os.close(descriptor)
    descriptor = os.open(path, os.O_RDONLY)
    if hasattr(os, "posix_fadvise"):
        # What lies on the disk is dropped from the cache, on most file systems.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return descriptor, False
