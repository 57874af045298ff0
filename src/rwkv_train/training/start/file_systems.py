"""The kind of file system that holds a folder, as this machine tells it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

MOUNT_TABLE = Path("/proc/mounts")
# Gone when the machine, or the container, ends.
IN_MEMORY = ("tmpfs", "ramfs")


def file_system(place: Path) -> str:
    """Returns the kind of file system that holds a folder, as "ext4"; "unknown" if nobody tells."""
    best, kind = "", "unknown"
    with suppress(OSError):
        for line in MOUNT_TABLE.read_text(encoding="utf-8", errors="replace").splitlines():
            words = line.split()
            at = words[1].replace("\\040", " ")
            if Path(at) in (place.resolve(), *place.resolve().parents) and len(at) >= len(best):
                best, kind = at, words[2]
    return kind


def existing_parent(folder: Path) -> Path:
    """Returns the folder itself, or the nearest above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if _may_exist(path))


def _may_exist(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        # In a folder that may not be looked into: who writes there is told so.
        return True
