"""The tensors of a state in a folder: read when they are asked for, whole or some elements."""

from __future__ import annotations

import io
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

from rwkv_train.checkpoint.element_boxes import Box
from rwkv_train.checkpoint.lazy_tensors import LazyTensors
from rwkv_train.checkpoint.memory_shortage import require_memory_sufficed
from rwkv_train.checkpoint.names import PART_LIST
from rwkv_train.checkpoint.part_metadata import read_metadata
from rwkv_train.checkpoint.state_parts import entry_name
from rwkv_train.errors import CheckpointError, short_reason


class StateParts:
    """Reads entries out of the parts in `folder`, and keeps none. Raises CheckpointError.

    The parts are mapped into memory at once: they stay readable when the folder is removed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._metadata = read_metadata(folder / PART_LIST)
        self._outlines = self._metadata.state_dict_metadata
        names = {self._place(index).relative_path for index in self._metadata.storage_data}
        self._parts = {name: _mapped(folder / name) for name in names}

    def plain_values(self) -> dict[str, Any]:
        """Returns what is no tensor of the model, by its key."""
        return {
            name: self._read(self._place(MetadataIndex(name)))
            for name, outline in self._outlines.items()
            if not isinstance(outline, TensorStorageMetadata)
        }

    def tensors(self, *keys: str) -> PartTensors:
        """Returns the tensors behind these keys, by name, in their order."""
        found = [
            tuple(path)
            for name, path in self._metadata.planner_data.items()
            if isinstance(self._outlines.get(name), TensorStorageMetadata)
        ]
        names = {path[-1] for path in found if path[:-1] == keys}
        prefix = entry_name([*keys, ""])
        ordered = [name.removeprefix(prefix) for name in self._outlines if name.startswith(prefix)]
        return PartTensors(self, keys, [name for name in ordered if name in names])

    def groups(self) -> dict[tuple[str, ...], PartTensors]:
        """Returns all tensors by the keys that lead to them."""
        paths = (self._metadata.planner_data[name] for name in self._outlines)
        keys = dict.fromkeys(tuple(path[:-1]) for path in paths if len(path) > 1)
        return {found: self.tensors(*found) for found in keys}

    def outline(self, path: tuple[str, ...]) -> Tensor:
        """Returns shape and number format of a tensor, on the meta device."""
        found = self._outline(path)
        return torch.empty(found.size, dtype=found.properties.dtype, device="meta")

    def run(self, path: tuple[str, ...], first: int, last: int) -> Tensor:
        """Returns the elements `first` to `last` - 1 of a tensor, [n] on the CPU."""
        outline, name = self._outline(path), entry_name(path)
        values = torch.empty(last - first, dtype=outline.properties.dtype)
        filled = 0
        for chunk in outline.chunks:
            entry = Box(tuple(chunk.offsets), tuple(chunk.sizes)).run(outline.size)
            begin, end = max(first, entry.start), min(last, entry.stop)
            if begin >= end:
                continue
            found = self._read(self._place(MetadataIndex(name, chunk.offsets)))
            if not isinstance(found, Tensor) or found.numel() != len(entry):
                raise CheckpointError(f"{self._folder} does not hold {name} where it says")
            part = found.reshape(-1)[begin - entry.start : end - entry.start]
            values[begin - first : end - first].copy_(part)
            filled += end - begin
        if filled != last - first:
            raise CheckpointError(f"{self._folder} lacks elements of {name}")
        return values

    def _outline(self, path: tuple[str, ...]) -> TensorStorageMetadata:
        outline = self._outlines[entry_name(path)]
        assert isinstance(outline, TensorStorageMetadata), f"{path} is no tensor"
        return outline

    def _place(self, index: MetadataIndex) -> _StorageInfo:
        place = self._metadata.storage_data.get(index)
        if not isinstance(place, _StorageInfo) or Path(place.relative_path).name != (
            place.relative_path
        ):
            raise CheckpointError(f"{self._folder / PART_LIST} has no place for {index.fqn}")
        return place

    def _read(self, place: _StorageInfo) -> Any:
        part = self._parts[place.relative_path]
        try:
            content = io.BytesIO(part[place.offset : place.offset + place.length])
            return torch.load(content, map_location="cpu", weights_only=True)
        except Exception as error:
            require_memory_sufficed(self._folder / place.relative_path, error)
            # Garbage makes unpicklers raise nearly anything.
            raise CheckpointError(
                f"{self._folder / place.relative_path} is damaged: {short_reason(error)}"
            ) from error


def _mapped(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        require_memory_sufficed(path, error)
        raise CheckpointError(f"{path} cannot be read: {short_reason(error)}") from error


class PartTensors(LazyTensors):
    """Tensors by name, each read from the disk whenever it is asked for."""

    def __init__(self, parts: StateParts, keys: tuple[str, ...], names: list[str]) -> None:
        super().__init__({name: parts.outline((*keys, name)) for name in names}, self._whole)
        self._parts = parts
        self._keys = keys

    def run(self, name: str, first: int, last: int) -> Tensor:
        """Returns the elements `first` to `last` - 1 of a tensor, [n]; reads no others."""
        return self._parts.run((*self._keys, name), first, last)

    def _whole(self, name: str) -> Tensor:
        outline = self.outlines[name]
        return self.run(name, 0, outline.numel()).view(outline.shape)


def element_run(tensors: Mapping[str, Tensor], name: str, first: int, last: int) -> Tensor:
    """Returns the elements `first` to `last` - 1 of a tensor, [n]."""
    if isinstance(tensors, PartTensors):
        return tensors.run(name, first, last)
    return tensors[name].reshape(-1)[first:last]
