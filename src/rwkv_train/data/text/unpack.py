"""Unpacks compressed inputs while they are read."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

from rwkv_train.errors import DataError, missing_package

Compression = Literal["gz", "zst", "bz2", "xz"]
# The first bytes of every file of the kind.
COMPRESSION_MAGICS: dict[bytes, Compression] = {
    b"\x1f\x8b": "gz",
    b"\x28\xb5\x2f\xfd": "zst",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
}
COMPRESSION_ENDINGS: dict[str, Compression] = {
    ".gz": "gz",
    ".zst": "zst",
    ".bz2": "bz2",
    ".xz": "xz",
}


class Readable(Protocol):
    """A file that is read from its beginning to its end."""

    def read(self, size: int, /) -> bytes:
        """Returns at most `size` bytes, none at the end."""


def unpacked(raw: Readable, compression: Compression | None, path: str) -> Readable:
    """Returns the content of a file; DataError when the package for it is missing.

    path: for the message.  Reading raises what `unpacking_errors` translates.
    """
    if compression is None:
        return raw
    if compression == "zst":
        return _zstandard(raw, path)
    # These classes call read() alone, though their types ask for seek() too.
    if compression == "gz":
        return gzip.GzipFile(fileobj=raw, mode="rb")  # type: ignore[call-overload,no-any-return]
    if compression == "bz2":
        return bz2.BZ2File(raw)  # type: ignore[call-overload,no-any-return]
    return lzma.LZMAFile(raw)  # type: ignore[arg-type]


def _zstandard(raw: Readable, path: str) -> Readable:
    try:
        import zstandard
    except ImportError as error:
        raise DataError(missing_package(path, "zstandard", "data")) from error
    # stream_reader() calls read() alone, though its type asks for a whole file object.
    return zstandard.ZstdDecompressor().stream_reader(
        raw,  # type: ignore[arg-type]
        # Files joined with cat have several frames; reading would stop after the first one.
        read_across_frames=True,
    )


@contextmanager
def unpacking_errors(path: str) -> Iterator[None]:
    """Turns errors of reading and unpacking a file into a DataError."""
    try:
        yield
    # Before OSError, of which BadGzipFile is one.
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} is damaged or cut off: {error}") from error
    except OSError as error:
        if error.errno is None:
            # bz2 has no error class of its own.
            raise DataError(f"{path} is damaged or cut off: {error}") from error
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:
        # zstandard is imported only where it is needed, so its error is known by its name.
        if type(error).__name__ == "ZstdError":
            raise DataError(f"{path} is damaged or cut off: {error}") from error
        raise
