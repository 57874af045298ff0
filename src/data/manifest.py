"""PREFIX.manifest.json: what a binidx pair was made from, which its own format cannot say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from src.data.binidx_layout import bin_path
from src.data.files import write_atomically
from src.errors import DataError


@dataclass(frozen=True)
class Manifest:
    """Facts about one pair."""

    tokenizer: str
    """name for `load_tokenizer`"""
    vocab_size: int
    """rows the embedding needs"""
    tokens: int
    """tokens in .bin, ends of documents included"""
    documents: int
    """documents in .bin, repetitions included"""
    dtype: str
    """NumPy name of the stored type"""
    sha256_bin: str
    """digest of .bin"""
    made_from: Mapping[str, Any] = field(default_factory=dict)
    """input and options; equal ones give the same bytes"""


def manifest_path(prefix: str | Path) -> Path:
    """PREFIX.manifest.json."""
    return Path(f"{prefix}.manifest.json")


def read_manifest(prefix: str | Path) -> Manifest | None:
    """The manifest beside a pair, None when there is none.

    Raises DataError when it is damaged or counts other tokens than the .bin holds.
    """
    path = manifest_path(prefix)
    try:
        content = json.loads(path.read_bytes())
        manifest = Manifest(**{f.name: content[f.name] for f in fields(Manifest)})
        expected = manifest.tokens * np.dtype(manifest.dtype).itemsize
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise DataError(
            f"{path} is damaged ({problem}); remove it, or make the data again"
        ) from error
    data = bin_path(prefix)
    if data.is_file() and data.stat().st_size != expected:
        raise DataError(
            f"{path} describes {manifest.tokens} tokens ({expected} bytes) but {data} has "
            f"{data.stat().st_size} bytes; it belongs to other data: remove it, or make the data "
            "again"
        )
    return manifest


def write_manifest(prefix: str | Path, manifest: Manifest) -> None:
    """Writes PREFIX.manifest.json atomically."""
    text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n"
    write_atomically(manifest_path(prefix), text.encode())


def file_sha256(path: str | Path) -> str:
    """Digest of a file's bytes, read in blocks; DataError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()
