"""The frozen base model of a run that trains something small next to it.

The training state holds what is trained, and of the base model only where its file is and what was
in it: states stay small, and the base is read from its own file at every start, so that no number
of resumed runs can change it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rwkv_train.errors import CheckpointError


def base_record(path: Path, folder: Path, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns what a training state in `folder` remembers of the base model in `path`.

    weights: its tensors, fp32. A file inside the folder is remembered relative to it, so that the
    folder may be moved.
    """
    path, folder = path.resolve(), folder.resolve()
    inside = path.is_relative_to(folder)
    return {
        "path": str(path.relative_to(folder) if inside else path),
        "checksum": checksum(weights),
    }


def checksum(weights: Mapping[str, Tensor]) -> int:
    """Returns the CRC-32 of all values as fp32, whatever format they were stored in."""
    value = 0
    # Sorted and as fp32: a base that was saved again in another format is still the same model.
    for name in sorted(weights):
        value = zlib.crc32(name.encode(), value)
        values = weights[name].float().contiguous().view(-1).numpy()
        value = zlib.crc32(values.data, value)
    return value


def find_base(record: Mapping[str, Any], folder: Path, given: str | None, state: Path) -> Path:
    """Returns the file of the base model, where it was or, if it moved, where --load_model says.

    A copy of a state has a copy of it beside it. Raises CheckpointError when it is nowhere.
    """
    remembered: Path = folder / record["path"]
    beside: Path = state.parent / record["path"]
    for path in (remembered, beside, *([Path(given)] if given else [])):
        # A folder of shards is one too.
        if path.exists():
            return path
    raise CheckpointError(
        f"{state} was trained with the base model {remembered}, which is not there; put it back, "
        f"or say by --load_model (without --train_stage) where it is now"
    )


def require_same_base(
    remembered: Mapping[str, Any], found: Mapping[str, Any], path: Path, state: Path
) -> None:
    """Raises CheckpointError unless the record `found` of `path` has the remembered checksum."""
    if found["checksum"] != remembered["checksum"]:
        raise CheckpointError(
            f"{path} is not the base model that {state} was trained with: its contents differ; "
            f"put the original back, or say by --load_model (without --train_stage) where it is now"
        )
