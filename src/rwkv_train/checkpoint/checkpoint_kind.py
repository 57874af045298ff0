"""Tells the format of a checkpoint by its bytes: its name may end in anything."""

from __future__ import annotations

import pickle
import stat
import zipfile
from pathlib import Path
from typing import Literal

from rwkv_train.errors import CheckpointError

CheckpointKind = Literal["zip", "pickle", "safetensors"]

# Beginnings of files that people give by mistake, and what they are.
_KNOWN = {
    b"version https://git-lfs": "a pointer of git-lfs to the file: fetch it with git lfs pull",
    b"GGUF": "a GGUF file, for llama.cpp: give the .pth it was made from",
    b"lmgg": "a GGML file, for rwkv.cpp: give the .pth it was made from",
    b"fmgg": "a GGML file, for rwkv.cpp: give the .pth it was made from",
    b"tjgg": "a GGML file, for rwkv.cpp: give the .pth it was made from",
    b"MMIDIDX\0\0": "the index of training data: give it as --data_file",
    b"\x93NUMPY": "an array of NumPy",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"\xfd7zXZ": "compressed by xz: unpack it first",
    b"BZh": "compressed by bzip2: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it first",
    b"7z\xbc\xaf": "a 7z archive: unpack it first",
    b"Rar!": "a rar archive: unpack it first",
}
_EXPECTED = "expected a .pth or .safetensors file of weights"


def checkpoint_kind(path: Path) -> CheckpointKind:
    """Returns the format of a file of weights; raises CheckpointError saying what it is instead."""
    _require_file(path)
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    size = path.stat().st_size
    if head.startswith(b"PK\x03\x04"):
        return "zip" if _is_of_torch(path) else _refuse(path, "a zip archive: unpack it first")
    # A header of so many bytes, which is JSON.
    header = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header + 8 <= size:
        return "safetensors"
    # Protocol 2 or higher; which torch wrote, or another program, only reading it shows.
    if head[:1] == b"\x80" and head[1:2] <= bytes([pickle.HIGHEST_PROTOCOL]) and size > 2:
        return "pickle"
    return _refuse(path, _what(head, size))


def _require_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink():
            raise CheckpointError(
                f"{path} is a link to {path.readlink()}, which does not exist"
            ) from error
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise CheckpointError(f"{path} does not exist; check the path given") from error
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a device"
        _refuse(path, f"{kind}, and weights are read out of order: write them to a file first")


def _is_of_torch(path: Path) -> bool:
    """Tells whether a zip file has the parts of torch.save; a damaged one is left to its reader."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return True
    return any(name.rpartition("/")[2] == "data.pkl" for name in names)


def _what(head: bytes, size: int) -> str:
    """Returns what a file with this beginning is, in words."""
    if size == 0:
        return "empty: its copy or download has failed"
    for beginning, what in _KNOWN.items():
        if head.startswith(beginning):
            return what
    if not head.strip(b"\0"):
        return "zeros: its copy or download has not been finished"
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page: a download that has failed or needs a login"
    if text.startswith((b"{", b"[")):
        return "JSON: for an index of shards or a config.json give the folder that it lies in"
    if head.isascii() and b"\0" not in head:
        return "text"
    return "truncated, damaged or of a format that is not known"


def _refuse(path: Path, what: str) -> CheckpointKind:
    raise CheckpointError(f"{path} is {what}; {_EXPECTED}")
