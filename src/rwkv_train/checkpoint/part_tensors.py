"""The tensors of a state in a folder: read when they are asked for, whole or some elements."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from rwkv_train.checkpoint.element_boxes import Box
from rwkv_train.checkpoint.lazy_tensors import LazyTensors
from rwkv_train.checkpoint.memory_shortage import require_memory_sufficed
from rwkv_train.checkpoint.names import PART_LIST
from rwkv_train.checkpoint.part_metadata import read_metadata
from rwkv_train.checkpoint.state_parts import entry_name
from rwkv_train.errors import CheckpointError, short_reason

# Parts that are open all the time; systems often allow a process 1024 files.
_OPEN = 512


class StateParts:
    """Reads entries out of the parts in `folder`, and keeps none. Raises CheckpointError.

    The parts, as many as a process may, are opened at once: they stay readable when the folder is
    removed. They are read an entry at a time, from the system's one copy of them: a map of them
    would count as every process's memory, and end it where a disk fails.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._metadata = read_metadata(folder / PART_LIST)
        self._outlines = self._metadata.state_dict_metadata
        names = {self._place(index).relative_path for index in self._metadata.storage_data}
        self._parts = {name: _OpenPart(folder / name) for name in sorted(names)[:_OPEN]}

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

    def fill(self, path: tuple[str, ...], first: int, target: Tensor) -> None:
        """Reads the elements of a tensor from `first` on into `target`, [n], as its format."""
        outline, name = self._outline(path), entry_name(path)
        last, filled = first + target.numel(), 0
        for chunk in outline.chunks:
            entry = Box(tuple(chunk.offsets), tuple(chunk.sizes)).run(outline.size)
            begin, end = max(first, entry.start), min(last, entry.stop)
            if begin >= end:
                continue
            found = self._entry(name, chunk)
            part = found.reshape(-1)[begin - entry.start : end - entry.start]
            target[begin - first : end - first].copy_(part)
            filled += end - begin
        if filled != target.numel():
            raise CheckpointError(f"{self._folder} lacks elements of {name}")

    def entries(self, key: str) -> dict[str, list[Callable[[], tuple[str, Tensor]]]]:
        """Returns by part what reads an entry of the tensors behind a key: its name and values."""
        found: dict[str, list[Callable[[], tuple[str, Tensor]]]] = {}
        for path in map(tuple, self._metadata.planner_data.values()):
            if path[0] != key or len(path) == 1:
                continue
            for chunk in self._outline(path).chunks:
                place = self._place(MetadataIndex(entry_name(path), chunk.offsets))
                read = partial(self._named_entry, path, chunk)
                found.setdefault(place.relative_path, []).append(read)
        return found

    def _named_entry(
        self, path: tuple[str, ...], chunk: ChunkStorageMetadata
    ) -> tuple[str, Tensor]:
        return entry_name(path[1:]), self._entry(entry_name(path), chunk)

    def _entry(self, name: str, chunk: ChunkStorageMetadata) -> Tensor:
        found = self._read(self._place(MetadataIndex(name, chunk.offsets)))
        if not isinstance(found, Tensor) or found.shape != chunk.sizes:
            raise CheckpointError(f"{self._folder} does not hold {name} where it says")
        return found

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
        name = place.relative_path
        part = self._parts.get(name) or _OpenPart(self._folder / name)
        try:
            content = io.BytesIO(part.read(place.offset, place.length))
            return torch.load(content, map_location="cpu", weights_only=True)
        except Exception as error:
            require_memory_sufficed(self._folder / place.relative_path, error)
            # Garbage makes unpicklers raise nearly anything.
            raise CheckpointError(
                f"{self._folder / name} is damaged: {short_reason(error)}"
            ) from error


class _OpenPart:
    """A part that is read by places, by several threads at once, and closed with its last user."""

    def __init__(self, path: Path) -> None:
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            require_memory_sufficed(path, error)
            raise CheckpointError(f"{path} cannot be read: {short_reason(error)}") from error

    def read(self, place: int, count: int) -> bytes:
        """Returns so many bytes from a place on. Raises OSError, EOFError."""
        found = os.pread(self._descriptor, count, place)
        if len(found) != count:
            raise EOFError(f"it ends within the {count:,} bytes from {place:,} on")
        return found

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


class PartTensors(LazyTensors):
    """Tensors by name, each read from the disk whenever it is asked for.

    dtype: number format of the floats among them, None: as they are stored.
    """

    def __init__(
        self,
        parts: StateParts,
        keys: tuple[str, ...],
        names: Iterable[str],
        dtype: torch.dtype | None = None,
    ) -> None:
        outlines = {name: parts.outline((*keys, name)) for name in names}
        if dtype is not None:
            outlines = {
                name: outline.to(dtype) if outline.is_floating_point() else outline
                for name, outline in outlines.items()
            }
        super().__init__(outlines, self._whole)
        self._parts = parts
        self._keys = keys

    def fill(self, name: str, first: int, target: Tensor) -> None:
        """Reads the elements of a tensor from `first` on into `target`, [n]; reads no others."""
        self._parts.fill((*self._keys, name), first, target)

    def converted(self, dtype: torch.dtype) -> PartTensors:
        """Returns the same tensors, converted while they are read."""
        return PartTensors(self._parts, self._keys, self, dtype)

    def _whole(self, name: str) -> Tensor:
        outline = self.outlines[name]
        whole = torch.empty(outline.shape, dtype=outline.dtype)
        self.fill(name, 0, whole.view(-1))
        return whole


def element_run(tensors: Mapping[str, Tensor], name: str, first: int, last: int) -> Tensor:
    """Returns the elements `first` to `last` - 1 of a tensor, [n]."""
    if isinstance(tensors, LazyTensors):
        run = torch.empty(last - first, dtype=tensors.outlines[name].dtype)
        tensors.fill(name, first, run)
        return run
    return tensors[name].reshape(-1)[first:last]
