"""Files that cannot be read or written for want of memory, which are neither damaged nor too large.

An intact state that was taken for a damaged one would be passed over, and its steps done again.
"""

from __future__ import annotations

from pathlib import Path

from rwkv_train.errors import CheckpointError, MemoryShortageError, is_out_of_memory, short_reason

_FREE_THE_DISK = "free the disk or choose another --proj_dir"


def require_memory_sufficed(path: Path, error: Exception) -> None:
    """Raises MemoryShortageError when it is why `path` could not be read."""
    if is_out_of_memory(error):
        raise MemoryShortageError(
            f"{path} cannot be read: out of memory; nothing is wrong with the file: free memory, "
            "or raise the limit that this process has; see docs/out_of_memory.md"
        ) from error


def write_fault(path: Path, error: Exception, remedy: str = _FREE_THE_DISK) -> CheckpointError:
    """Returns what to raise where `path` could not be written; remedy: for a fault of its disk."""
    reason = short_reason(error)
    if is_out_of_memory(error):
        reason, remedy = "out of memory", "free memory, or see docs/out_of_memory.md"
    return CheckpointError(
        f"cannot write {path}: {reason}; {remedy}. What was there before is unchanged"
    )
