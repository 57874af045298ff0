"""Reading `.metadata` of torch's checkpoints without the power of pickle to call functions."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import metadata as described
from torch.distributed.checkpoint.filesystem import _StorageInfo

from rwkv_train.checkpoint.memory_shortage import require_memory_sufficed
from rwkv_train.errors import CheckpointError, short_reason

# What torch describes a checkpoint with; none of them does more than keep values.
_CLASSES: tuple[type, ...] = (
    described.BytesStorageMetadata,
    described.ChunkStorageMetadata,
    described.Metadata,
    described.MetadataIndex,
    described.TensorProperties,
    described.TensorStorageMetadata,
    described._MEM_FORMAT_ENCODING,
    _StorageInfo,
    torch.Size,
)
_ALLOWED: dict[tuple[str, str], Any] = {(kind.__module__, kind.__name__): kind for kind in _CLASSES}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if (module, name) == ("torch.serialization", "_get_layout"):
            return _layout
        if (module, name) == ("builtins", "getattr"):
            return _encoding
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}") from None


def read_metadata(path: Path) -> described.Metadata:
    """Returns what `.metadata` at `path` tells of a checkpoint. Raises CheckpointError."""
    try:
        with path.open("rb") as file:
            found = _Reader(file).load()
    except Exception as error:
        require_memory_sufficed(path, error)
        # Garbage makes unpicklers raise nearly anything: IndexError, TypeError, struct.error ...
        raise CheckpointError(
            f"{path} is damaged or more than the list of a checkpoint's tensors: "
            f"{short_reason(error)}"
        ) from error
    if not isinstance(found, described.Metadata) or not isinstance(found.storage_data, dict):
        raise CheckpointError(f"{path} is no list of a checkpoint's tensors")
    return found


def _encoding(kind: type, name: str) -> described._MEM_FORMAT_ENCODING:
    """Returns a member of torch's enumeration, which Pythons before 3.11.4 write as getattr."""
    if kind is not described._MEM_FORMAT_ENCODING or name not in kind.__members__:
        raise pickle.UnpicklingError(f"it asks for {name} of {kind}")
    return described._MEM_FORMAT_ENCODING[name]


def _layout(name: str) -> torch.layout:
    if name != "torch.strided":
        raise pickle.UnpicklingError(f"it names the layout {name}")
    return torch.strided
