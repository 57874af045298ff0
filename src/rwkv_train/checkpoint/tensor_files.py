"""The two kinds of files of tensors: `.pth` of torch, read and mapped, and `.safetensors`.

Nothing in them is executed. What cannot be read raises anything, see `weights`.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

# Formats of weights, by the names that safetensors gives them.
FLOAT_FORMATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def map_pth(path: Path) -> Any:
    """Returns what a .pth file holds, its tensors on the disk until they are used."""
    # Only zip files, which torch writes since 1.6, can be mapped; older ones are read whole. By
    # this ending torch takes any file for safetensors, unless it is given a handle.
    if path.suffix != ".safetensors" and zipfile.is_zipfile(path):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    with path.open("rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def read_pth(path: Path) -> Any:
    """Returns what a .pth file holds, every byte of it read and compared with its checksum."""
    if zipfile.is_zipfile(path):
        # torch does not compare the checksums that it writes.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"wrong checksum of its part {damaged}")
    with path.open("rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a .safetensors file."""
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def safetensors_outlines(path: Path) -> dict[str, Tensor]:
    """Returns tensors of shape and number format alone."""
    with safe_open(path, framework="pt") as file:
        parts = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
        formats = {k: FLOAT_FORMATS.get(part.get_dtype(), torch.uint8) for k, part in parts.items()}
        return {
            key: torch.empty(part.get_shape(), dtype=formats[key], device="meta")
            for key, part in parts.items()
        }


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes a .safetensors file, which knows no views: all tensors are copied first."""
    whole = {
        key: tensor.cpu().clone(memory_format=torch.contiguous_format)
        for key, tensor in tensors.items()
    }
    # safetensors makes files that only their owner can read.
    path.touch()
    mode = path.stat().st_mode
    # transformers refuses a file that does not say so.
    save_file(whole, path, {"format": "pt"})
    path.chmod(mode)
