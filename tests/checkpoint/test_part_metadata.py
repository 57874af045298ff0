"""`.metadata` is read as every Python writes it, and calls nothing."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)

from rwkv_train.checkpoint.part_metadata import read_metadata
from rwkv_train.errors import CheckpointError


class Reduced:
    """Something that a pickle makes by a call."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


def write(path: Path, content: Any) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


def test_members_of_an_enumeration_may_be_written_as_getattr(tmp_path: Path):
    # Pythons before 3.11.4 do so.
    kept = TensorStorageMetadata(TensorProperties(torch.float32), torch.Size([2]), [])
    found = read_metadata(write(tmp_path / "m", Metadata({"a": kept}, storage_data={})))
    member = Reduced(getattr, _MEM_FORMAT_ENCODING, "TORCH_CONTIGUOUS_FORMAT")
    older = Metadata({"a": kept}, planner_data=member, storage_data={})
    again = read_metadata(write(tmp_path / "m", older))
    assert again.planner_data is _MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT
    assert again.state_dict_metadata == found.state_dict_metadata == {"a": kept}


@pytest.mark.parametrize(
    "call",
    [
        (os.system, "true"),
        (getattr, torch.Size, "count"),
        (getattr, Metadata, "__init__"),
        (getattr, _MEM_FORMAT_ENCODING, "__class__"),
    ],
)
def test_whatever_else_a_pickle_names_is_refused(tmp_path: Path, call: tuple[Any, ...]):
    path = write(tmp_path / "m", Metadata({}, planner_data=Reduced(*call), storage_data={}))
    with pytest.raises(CheckpointError, match="damaged or more than the list"):
        read_metadata(path)
