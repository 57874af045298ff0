"""SHA-256 of the content of training states and of files, verified when they are read again."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

# Bytes read at once: a checkpoint need not fit into memory.
_CHUNK = 1 << 22
_SAMPLES, _SAMPLE = 64, 1 << 16


def content_digest(content: Any) -> str:
    """Returns the SHA-256 of nested dicts, lists and tuples of plain values, in hex.

    Plain values are tensors, numbers, strings and None. The digest covers every key, type, shape
    and bit, and the order. Raises TypeError for anything else.
    """
    digest = hashlib.sha256()
    _update(digest, content)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file, in hex. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class DigestedStream(io.RawIOBase):
    """Writes to a file, and digests what it writes: `size` bytes so far, their SHA-256 in hex."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        """The digest of what was written so far."""
        return self._digest.hexdigest()

    def writable(self) -> bool:
        """Tells that it is there to be written to."""
        return True

    def write(self, content: Any) -> int:
        """Writes all of `content`; returns its bytes. Raises OSError."""
        count = self._file.write(content)
        self._digest.update(content)
        self.size += count
        return count

    def tell(self) -> int:
        """Returns where the next byte comes: there is no way back."""
        return self.size

    def flush(self) -> None:
        """Hands what is written to the system."""
        self._file.flush()

    def fileno(self) -> int:
        """Returns the file's descriptor, by which it is made durable."""
        return self._file.fileno()


def sampled_file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file's size and of blocks spread over it. Raises OSError.

    For comparing copies of a file that would take long to read as a whole.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for i in range(_SAMPLES):
            file.seek(max(0, size - _SAMPLE) * i // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def _update(digest: hashlib._Hash, content: Any) -> None:
    if isinstance(content, Tensor):
        digest.update(f"tensor {content.dtype} {list(content.shape)};".encode())
        values = content.detach().cpu().contiguous().reshape(-1)
        if values.numel():
            # As bytes: numpy knows no bf16, and the view costs no copy.
            digest.update(values.view(torch.uint8).numpy().data)
    elif isinstance(content, Mapping):
        # With the counts and lengths no two different contents give the same bytes.
        digest.update(f"dict {len(content)};".encode())
        for key, value in content.items():
            _update(digest, key)
            _update(digest, value)
    elif isinstance(content, (list, tuple)):
        digest.update(f"{type(content).__name__} {len(content)};".encode())
        for value in content:
            _update(digest, value)
    elif content is None or isinstance(content, (bool, int, float, str)):
        # repr of a float gives back its every bit
        text = repr(content).encode("utf-8", "surrogatepass")
        digest.update(f"{type(content).__name__} {len(text)};".encode() + text)
    else:
        raise TypeError(f"a training state cannot hold {type(content).__name__}")
