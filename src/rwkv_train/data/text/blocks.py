"""Reads inputs as blocks of whole documents; how they are cut depends on the inputs alone."""

from __future__ import annotations

import gzip
import hashlib
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from rwkv_train.data.storage.hashing import BackgroundSha256, file_sha256
from rwkv_train.data.text.inputs import STANDARD_INPUT, FileRange
from rwkv_train.errors import DataError, missing_package

BLOCK_BYTES = 1 << 19
_PARQUET_ROWS = 256
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Content = bytes | list[Any]


class TextBlock(NamedTuple):
    """Some documents, still as they stand in the file."""

    file_range: FileRange
    content: Content
    """bytes: lines of a jsonl, the whole of a txt; a list: values of a parquet column, or rows of
    several"""
    bytes_read: int
    """bytes on disk read since the block before"""


class BlockReader:
    """Yields the blocks of all ranges in order, in memory for one block and its longest line.

    `sha256` afterwards identifies what was read: the digest of a single file's bytes, or of the
    list of such digests. With `row_keys` a parquet file gives whole rows: objects with those keys
    and the text's, where it has them. Iterating raises DataError for files that cannot be read or
    unpacked.
    """

    def __init__(
        self, file_ranges: Sequence[FileRange], text_key: str, row_keys: Sequence[str] = ()
    ) -> None:
        self._file_ranges = file_ranges
        self._text_key = text_key
        self._row_keys = row_keys
        self._digests: list[str] = []

    @property
    def sha256(self) -> str:
        return _joint_digest(self._digests)

    def __iter__(self) -> Iterator[TextBlock]:
        for file_range in self._file_ranges:
            with _reported(file_range):
                if file_range.file.kind == "parquet":
                    yield from _parquet_blocks(file_range, self._text_key, self._row_keys)
                    # The library reads column by column: bytes cannot be hashed as they pass.
                    self._digests.append(file_sha256(file_range.file.path))
                else:
                    yield from self._stream_blocks(file_range)

    def _stream_blocks(self, file_range: FileRange) -> Iterator[TextBlock]:
        cut = _line_blocks if file_range.file.kind == "jsonl" else _whole
        reported = 0
        with _opened_file(file_range) as raw:
            for number, content in enumerate(cut(_unpacked(raw, file_range))):
                # Only a file's first bytes are a mark; elsewhere they are text.
                if number == 0 and file_range.start == 0:
                    content = content.removeprefix(_BYTE_ORDER_MARK)
                yield TextBlock(file_range, content, raw.count - reported)
                reported = raw.count
            self._digests.append(raw.sha256.hexdigest())


def digest(file_ranges: Sequence[FileRange]) -> str:
    """Returns what `BlockReader.sha256` will be, reading the files without unpacking them."""
    digests = []
    for file_range in file_ranges:
        with _reported(file_range), _opened_file(file_range) as raw:
            while raw.read(BLOCK_BYTES):
                pass
            digests.append(raw.sha256.hexdigest())
    return _joint_digest(digests)


def lines_before(file_range: FileRange) -> int:
    """Counts the lines of the file before the range, for messages; reads that much of the file."""
    if file_range.start == 0:
        return 0
    with _reported(file_range), Path(file_range.file.path).open("rb") as file:
        left, count = _line_start(file, file_range.start), 0
        file.seek(0)
        while left and (content := file.read(min(left, BLOCK_BYTES))):
            count += content.count(b"\n")
            left -= len(content)
    return count


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Counted:
    """A stretch of a file, counted and hashed as it is read."""

    def __init__(self, file: BinaryIO, left: int | None) -> None:
        self._file = file
        self._left = left
        self.count = 0
        self.sha256 = BackgroundSha256()

    def read(self, size: int) -> bytes:
        if self._left is not None:
            size = min(size, self._left - self.count)
        content = self._file.read(size)
        self.count += len(content)
        self.sha256.update(content)
        return content


@contextmanager
def _opened_file(file_range: FileRange) -> Iterator[_Counted]:
    if file_range.file.path == STANDARD_INPUT:
        yield _Counted(sys.stdin.buffer, None)
        return
    with Path(file_range.file.path).open("rb") as file:
        left = None
        if file_range.end is not None:
            end, start = _line_start(file, file_range.end), _line_start(file, file_range.start)
            file.seek(start)
            left = end - start
        yield _Counted(file, left)


def _line_start(file: BinaryIO, position: int) -> int:
    """Finds where the first line that begins at or after `position` begins."""
    if position == 0:
        return 0
    # One byte earlier: a line that begins exactly at `position` must be found, not skipped.
    file.seek(position - 1)
    file.readline()
    return file.tell()


def _unpacked(raw: _Counted, file_range: FileRange) -> _Readable:
    if file_range.file.compression == "gz":
        # GzipFile calls read() alone, though its type asks for seek() too.
        unpacked: _Readable = gzip.GzipFile(fileobj=raw, mode="rb")  # type: ignore[call-overload]
        return unpacked
    if file_range.file.compression == "zst":
        try:
            import zstandard
        except ImportError as error:
            raise _missing("zstandard", file_range) from error
        decompressor = zstandard.ZstdDecompressor()
        # stream_reader() calls read() alone, though its type asks for a whole file object.
        return decompressor.stream_reader(
            raw,  # type: ignore[arg-type]
            # Files joined with cat have several frames; reading would stop after the first one.
            read_across_frames=True,
        )
    return raw


def _line_blocks(stream: _Readable) -> Iterator[bytes]:
    """Yields whole lines, about BLOCK_BYTES at a time; more when a line is longer."""
    # A list, joined once: adding up bytes would copy a long line again with every block.
    begun: list[bytes] = []
    while content := stream.read(BLOCK_BYTES):
        cut = content.rfind(b"\n") + 1
        if cut:
            yield b"".join([*begun, content[:cut]])
            begun = []
        begun.append(content[cut:])
    if rest := b"".join(begun):
        yield rest


def _whole(stream: _Readable) -> Iterator[bytes]:
    parts = []
    while content := stream.read(BLOCK_BYTES):
        parts.append(content)
    yield b"".join(parts)


def _parquet_blocks(
    file_range: FileRange, text_key: str, row_keys: Sequence[str]
) -> Iterator[TextBlock]:
    try:
        # The package has no type information.
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise _missing("pyarrow", file_range) from error
    try:
        with pyarrow.parquet.ParquetFile(file_range.file.path) as table:
            columns = table.schema_arrow.names
            wanted = [key for key in dict.fromkeys((text_key, *row_keys)) if key in columns]
            if not wanted:
                raise DataError(
                    f"{file_range.file.path}: there is no column '{text_key}'; the columns are: "
                    f"{', '.join(columns)} (choose with --text_key)"
                )
            rows = max(table.metadata.num_rows, 1)
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=wanted):
                # For the progress bar alone: the library does not tell how many bytes it has read.
                share = (file_range.file.size or 0) * batch.num_rows // rows
                content = batch.to_pylist() if row_keys else batch.column(0).to_pylist()
                yield TextBlock(file_range, content, share)
    except pyarrow.ArrowException as error:
        raise DataError(
            f"{file_range.file.path} is not a readable parquet file: {error}"
        ) from error


def _missing(package: str, file_range: FileRange) -> DataError:
    return DataError(missing_package(file_range.file.path, package, "data"))


@contextmanager
def _reported(file_range: FileRange) -> Iterator[None]:
    """Turns errors of reading and unpacking a file into a DataError."""
    path = file_range.file.path
    try:
        yield
    # Before OSError, of which BadGzipFile is one.
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged or cut off: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:
        # zstandard is imported only where it is needed, so its error is known by its name.
        if type(error).__name__ == "ZstdError":
            raise DataError(f"{path} is damaged or cut off: {error}") from error
        raise


def _joint_digest(digests: Sequence[str]) -> str:
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
