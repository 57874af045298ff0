"""The parts of a training state in a folder, written as torch.distributed.checkpoint writes them.

Every rank writes `__RANK_0.distcp` and beside it, until all have, a list of what is in it; the
first rank makes `.metadata` of the lists. What results is a checkpoint of torch's: `load` and
`format_utils.dcp_to_torch_save` of torch.distributed.checkpoint read it.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import (
    FileSystem,
    FileSystemWriter,
    _StorageInfo,
    _StoragePrefix,
)
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    BytesIOWriteData,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import WriteResult

from rwkv_train.checkpoint.digest import DigestedStream
from rwkv_train.checkpoint.element_boxes import boxes
from rwkv_train.checkpoint.names import PART_LIST
from rwkv_train.checkpoint.state_manifest import PartFile
from rwkv_train.files import write_atomically

# Bytes of one entry at most: torch copies an entry before it writes it.
_ENTRY_BYTES = 4 << 20


@dataclass(frozen=True)
class TensorRun:
    """Consecutive elements of a tensor of the state.

    path: keys that lead to the tensor, such as ("moments", "exp_avg", "emb.weight"); shape: of the
    whole tensor; first: place of the first element in it, flattened; values: [n], on the CPU.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    first: int
    values: Tensor

    def cut(self) -> Iterator[tuple[WriteItem, Tensor]]:
        """Yields its entries: boxes of the tensor with their values."""
        most = max(1, _ENTRY_BYTES // self.values.element_size())
        for begin in range(self.first, self.first + self.values.numel(), most):
            end = min(begin + most, self.first + self.values.numel())
            for box in boxes(self.shape, begin, end):
                run = box.run(self.shape)
                found = self.values[run.start - self.first : run.stop - self.first]
                chunk = ChunkStorageMetadata(torch.Size(box.offsets), torch.Size(box.sizes))
                data = TensorWriteData(
                    chunk, TensorProperties(self.values.dtype), torch.Size(self.shape)
                )
                index = MetadataIndex(entry_name(self.path), box.offsets)
                yield WriteItem(index, WriteItemType.SHARD, tensor_data=data), found.view(box.sizes)


def entry_name(path: Sequence[str]) -> str:
    """Returns the name under which torch's checkpoints keep a value of nested dictionaries."""
    return ".".join(path)


def part_name(rank: int) -> str:
    """Returns the file name of a rank's part."""
    return f"__{rank}_0.distcp"


def write_part(
    folder: Path, rank: int, pieces: Iterable[TensorRun], plain: Mapping[str, Any] | None = None
) -> PartFile:
    """Writes a rank's part into `folder`, flushed to the disk; returns its size and digest.

    Those are of the bytes as they were handed to the disk: what it keeps is compared with them, and
    not the other way round. plain: values that are no tensors of the model, on the first rank.
    Raises OSError, or RuntimeError of torch's.
    """
    items: list[WriteItem] = []
    values: dict[MetadataIndex, Tensor | io.BytesIO] = {}
    paths: dict[str, tuple[str, ...]] = {}
    for piece in pieces:
        paths[entry_name(piece.path)] = piece.path
        for item, value in piece.cut():
            items.append(item)
            values[item.index] = value
    for key, value in (plain or {}).items():
        paths[key] = (key,)
        packed = _packed(value)
        items.append(_plain_item(key, packed))
        values[items[-1].index] = packed
    plan = SavePlan(items, storage_data=_StoragePrefix(f"__{rank}_"))
    writer = _PartWriter(folder)
    results = writer.write_data(plan, _Content(values)).wait()
    # torch writes the entries in another order than they are given.
    places = {result.index: result.storage_data for result in results}
    told = {"paths": paths, "entries": [_told(item, places[item.index]) for item in items]}
    write_atomically(_list_path(folder, rank), json.dumps(told).encode())
    return writer.fs.written[part_name(rank)]


def write_metadata(folder: Path, ranks: int, order: Sequence[str] = ()) -> Path:
    """Writes `.metadata` of the parts of all ranks, removes their lists, and returns its path.

    order: names of entries that come first, in this order; the others follow as they were written.
    Raises OSError.
    """
    found: dict[str, STORAGE_TYPES] = {}
    paths: dict[str, tuple[str, ...]] = {}
    results = []
    for rank in range(ranks):
        told = json.loads(_list_path(folder, rank).read_text(encoding="utf-8"))
        paths |= {name: tuple(path) for name, path in told["paths"].items()}
        for entry in told["entries"]:
            results.append(_add(found, part_name(rank), entry))
    names = [name for name in order if name in found]
    found = {name: found[name] for name in dict.fromkeys([*names, *found])}
    _PartWriter(folder).finish(Metadata(found, planner_data=paths), [results])
    for rank in range(ranks):
        _list_path(folder, rank).unlink()
    return folder / PART_LIST


class _DigestingFiles(FileSystem):
    """torch's, which digests what it writes; written: the files by name, once they are closed."""

    def __init__(self) -> None:
        self.written: dict[str, PartFile] = {}

    @contextmanager
    def create_stream(
        self, path: str | os.PathLike[str], mode: str
    ) -> Generator[io.IOBase, None, None]:
        with (
            super().create_stream(path, mode) as file,
            DigestedStream(cast(BinaryIO, file)) as stream,
        ):
            yield stream
            self.written[Path(path).name] = PartFile(stream.size, stream.sha256)


class _PartWriter(FileSystemWriter):
    """torch's, without a note of the folder, which gets its name only once all is there."""

    fs: _DigestingFiles

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.fs = _DigestingFiles()

    def storage_meta(self) -> StorageMeta | None:
        return None


class _Content(DefaultSavePlanner):
    """Gives torch's writer what belongs to its entries."""

    def __init__(self, values: Mapping[MetadataIndex, Tensor | io.BytesIO]) -> None:
        super().__init__()
        self._values = values

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        return self._values[write_item.index]


def _list_path(folder: Path, rank: int) -> Path:
    return folder / f"__{rank}_0.json"


def _packed(value: Any) -> io.BytesIO:
    packed = io.BytesIO()
    torch.save(value, packed)
    return packed


def _plain_item(key: str, packed: io.BytesIO) -> WriteItem:
    data = BytesIOWriteData(packed.getbuffer().nbytes)
    return WriteItem(MetadataIndex(key), WriteItemType.BYTE_IO, bytes_io_data=data)


def _told(item: WriteItem, stored: _StorageInfo) -> dict[str, Any]:
    place = {"name": item.index.fqn, "at": stored.offset, "bytes": stored.length}
    if item.tensor_data is None:
        return place
    return {
        **place,
        "dtype": str(item.tensor_data.properties.dtype).removeprefix("torch."),
        "shape": [*item.tensor_data.size],
        "offsets": [*item.tensor_data.chunk.offsets],
        "sizes": [*item.tensor_data.chunk.sizes],
    }


def _add(found: dict[str, STORAGE_TYPES], part: str, entry: Mapping[str, Any]) -> WriteResult:
    """Adds an entry to what is in all parts; returns what torch's writer says of it."""
    name, place = entry["name"], _StorageInfo(part, entry["at"], entry["bytes"])
    if "shape" not in entry:
        found[name] = BytesStorageMetadata()
        return WriteResult(MetadataIndex(name), entry["bytes"], place)
    properties = TensorProperties(getattr(torch, entry["dtype"]))
    outline = TensorStorageMetadata(properties, torch.Size(entry["shape"]), [])
    tensor = found.setdefault(name, outline)
    assert isinstance(tensor, TensorStorageMetadata), f"{name} is a tensor and no tensor"
    offsets, sizes = torch.Size(entry["offsets"]), torch.Size(entry["sizes"])
    tensor.chunks.append(ChunkStorageMetadata(offsets, sizes))
    return WriteResult(MetadataIndex(name, offsets), entry["bytes"], place)
