"""Writing a .pth file of torch's with one tensor in memory at a time.

`torch.save` writes the same bytes, and wants all tensors at once.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import DEFAULT_PROTOCOL, _open_zipfile_writer, _save


def write_pth(path: Path, outlines: Mapping[str, Tensor], make: Callable[[str], Tensor]) -> None:
    """Writes what `torch.save` writes for a dictionary of tensors.

    outlines: their shapes and number formats by name, in the order of the file; make: returns a
    tensor by its name, called once for each. Raises OSError, RuntimeError and whatever `make` does.
    """
    # The system gives memory to what is written to, and nothing writes into these.
    empty = {name: torch.empty(o.shape, dtype=o.dtype) for name, o in outlines.items()}
    # A handle, because given a path torch writes its name into the file.
    with path.open("wb") as file, _open_zipfile_writer(file) as archive:
        filled = _FilledArchive(archive, (make(name) for name in outlines))
        _save(empty, filled, pickle, DEFAULT_PROTOCOL, False)  # type: ignore[no-untyped-call]


class _FilledArchive:
    """An archive of torch's in which every tensor's data are the next tensor's."""

    def __init__(self, archive: Any, tensors: Iterator[Tensor]) -> None:
        self._archive = archive
        self._tensors = tensors

    def write_record(self, name: str, content: Any, size: int) -> None:
        """Writes a part, of which torch gives name, content and bytes."""
        if name.startswith("data/"):
            tensor = next(self._tensors).detach().cpu().contiguous()
            # A view owns more than itself.
            whole = tensor.untyped_storage().nbytes() == size
            content = (tensor if whole else tensor.clone()).untyped_storage()
        self._archive.write_record(name, content, size)
