"""Room on the disk, checked before a file is begun."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from rwkv_train.errors import CheckpointError

# Per tensor: its name twice, its description and the alignment of its data.
_PER_TENSOR = 1024
_PER_FILE = 1 << 16


def require_space(path: Path, content: object) -> None:
    """Raises CheckpointError when the disk of `path` has no room for tensors in nested dicts.

    A quota is not seen here; running into one fails while writing, which leaves nothing behind.
    """
    needed = _PER_FILE + _size(content)
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error}; is its disk still there?"
        ) from error
    if free < needed:
        raise CheckpointError(
            f"cannot write {path}: it needs {_megabytes(needed)} and {_megabytes(free)} are free; "
            "make room. What was there before is unchanged"
        )


def _size(content: object) -> int:
    if isinstance(content, Tensor):
        return content.numel() * content.element_size() + _PER_TENSOR
    if isinstance(content, Mapping):
        return sum(_size(value) for value in content.values())
    if isinstance(content, (list, tuple)):
        return sum(_size(value) for value in content)
    # 16 bytes are more than a pickled number takes.
    return len(content) if isinstance(content, str) else 16


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
