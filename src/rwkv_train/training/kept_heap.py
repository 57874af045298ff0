"""Keeps the memory that a step frees for the next one, backed by huge pages: training on a CPU.

glibc hands large blocks back to the system when they are freed, and the system clears and maps each
of their pages anew in the next step: tens of thousands of page faults a step, a tenth to a fifth of
its time. Here the heap keeps what it has: no block has a mapping of its own, nothing is trimmed.
A step frees all its activations, so the heap holds the largest step so far and not more.

Linux with glibc only; a data worker, which is forked from such a process, undoes it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

from rwkv_train.training.environment import variables

# Options of mallopt, from <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
# mallopt takes an int, and its manual says of -1 that nothing is trimmed, whatever the size.
_KEEP = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 64 << 20}
_GLIBC_DEFAULTS = {
    _MMAP_MAX: 65536,
    _MMAP_THRESHOLD: 128 << 10,
    _TRIM_THRESHOLD: 128 << 10,
    _TOP_PAD: 128 << 10,
}
# Of the machine's memory, as addresses: pages are taken when they are touched. A step that takes
# more than half of a machine finds ordinary pages beyond.
_SHARE_OF_MEMORY = 2
_STRICT_OVERCOMMIT = "2"
_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_ROLLUP = Path("/proc/self/smaps_rollup")
# Inherited by forked processes.
_kept = {"heap": False}


def keep_heap() -> str:
    """Lets this process keep its heap; returns what people should know of it, in a line.

    Once, before the first step. Nothing changes where the C library is not glibc, or where the
    user has set its allocator's variables.
    """
    if not _is_glibc():
        return "given back to the system: only glibc's can be kept"
    if _chosen_by_user():
        return "as the environment's MALLOC_ or GLIBC_TUNABLES variables say"
    libc = _libc()
    if not all(libc.mallopt(option, value) for option, value in _KEEP.items()):
        return "given back to the system: the C library refuses to keep it"
    _kept["heap"] = True
    if not _grow(libc):
        return "kept from step to step, ordinary pages"
    return "kept from step to step, huge pages"


def give_back_heap() -> None:
    """Undoes `keep_heap` in a process that was forked from one which has called it."""
    if not _kept["heap"]:
        return
    libc = _libc()
    for option, value in _GLIBC_DEFAULTS.items():
        libc.mallopt(option, value)
    libc.malloc_trim(0)


def huge_page_bytes() -> int:
    """Returns how much of this process's memory lies on huge pages; 0 where that is not told."""
    for line in _text(_ROLLUP).splitlines():
        name, _, rest = line.partition(":")
        if name == "AnonHugePages":
            return int(rest.split()[0]) << 10
    return 0


def _grow(libc: ctypes.CDLL) -> bool:
    """Extends the heap by addresses that the system backs with huge pages; tells whether it does.

    The block is freed at once and, without trimming, remains the heap's unused end.
    """
    if "[never]" in _text(_HUGE_PAGES) or not _text(_HUGE_PAGES):
        return False
    # There every address counts as memory in use, touched or not.
    if _text(_OVERCOMMIT).strip() == _STRICT_OVERCOMMIT:
        return False
    size = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE // _SHARE_OF_MEMORY
    block = libc.malloc(size)
    if not block:
        return False
    begin = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (block + size - begin) // mmap.PAGESIZE * mmap.PAGESIZE
    refused = libc.madvise(begin, length, mmap.MADV_HUGEPAGE)
    libc.free(block)
    return not refused


def _libc() -> ctypes.CDLL:
    """Returns the allocator that this process uses, with its functions' types."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    libc.malloc_trim.argtypes = [ctypes.c_size_t]
    return libc


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, OSError, ValueError):
        # Another system, or another C library.
        return False


def _chosen_by_user() -> bool:
    given = variables()
    tunables = given.get("GLIBC_TUNABLES", "")
    return "glibc.malloc" in tunables or any(
        name.startswith("MALLOC_") and name.endswith("_") for name in given
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
