"""Reads inputs as blocks of whole documents; how they are cut depends on the inputs alone."""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from rwkv_train.data.storage.hashing import BackgroundSha256, file_sha256
from rwkv_train.data.text.csv_rows import csv_blocks
from rwkv_train.data.text.file_kind import HEAD_BYTES, format_of
from rwkv_train.data.text.inputs import STANDARD_INPUT, FileRange
from rwkv_train.data.text.json_values import value_lines
from rwkv_train.data.text.unpack import Readable, unpacked, unpacking_errors
from rwkv_train.errors import DataError, missing_package

BLOCK_BYTES = 1 << 19
_PARQUET_ROWS = 256
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Content = bytes | list[Any]


class TextBlock(NamedTuple):
    """Some documents, still as they stand in the file."""

    file_range: FileRange
    content: Content
    """bytes: lines of a jsonl, the whole of a txt; a list: values of a column of a table, or rows
    of several"""
    bytes_read: int
    """bytes on disk read since the block before"""


class BlockReader:
    """Yields the blocks of all ranges in order, in memory for one block and its longest line.

    `sha256` afterwards identifies what was read: the digest of a single file's bytes, or of the
    list of such digests. With `row_keys` a table gives whole rows, if it has any column of those
    names or the text's. Iterating raises DataError for files that cannot be read or
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
            with unpacking_errors(file_range.file.path):
                if file_range.file.kind == "parquet":
                    yield from _parquet_blocks(file_range, self._text_key, self._row_keys)
                    # The library reads column by column: bytes cannot be hashed as they pass.
                    self._digests.append(file_sha256(file_range.file.path))
                else:
                    yield from self._stream_blocks(file_range)

    def _stream_blocks(self, file_range: FileRange) -> Iterator[TextBlock]:
        reported = 0
        with _opened_file(file_range) as raw:
            stream: Readable = raw
            if file_range.file.size is None:
                file_range, stream = _identified(file_range, raw)
            for number, content in enumerate(self._contents(file_range, stream)):
                # Only a file's first bytes are a mark; elsewhere they are text.
                if number == 0 and file_range.start == 0 and isinstance(content, bytes):
                    content = content.removeprefix(_BYTE_ORDER_MARK)
                yield TextBlock(file_range, content, raw.count - reported)
                reported = raw.count
            self._digests.append(raw.sha256.hexdigest())

    def _contents(self, file_range: FileRange, stream: Readable) -> Iterator[Content]:
        path, kind, compression, _ = file_range.file
        stream = unpacked(stream, compression, path)
        if kind == "csv":
            keys = [self._text_key, *self._row_keys]
            for rows in csv_blocks(stream, path, keys, BLOCK_BYTES):
                yield rows if self._row_keys else [row.get(self._text_key) for row in rows]
        elif kind == "json":
            yield from value_lines(stream, path, BLOCK_BYTES)
        else:
            yield from (_line_blocks if kind == "jsonl" else _whole)(stream)


def digest(file_ranges: Sequence[FileRange]) -> str:
    """Returns what `BlockReader.sha256` will be, reading the files without unpacking them."""
    digests = []
    for file_range in file_ranges:
        with unpacking_errors(file_range.file.path), _opened_file(file_range) as raw:
            while raw.read(BLOCK_BYTES):
                pass
            digests.append(raw.sha256.hexdigest())
    return _joint_digest(digests)


def lines_before(file_range: FileRange) -> int:
    """Counts the lines of the file before the range, for messages; reads that much of the file."""
    if file_range.start == 0:
        return 0
    with unpacking_errors(file_range.file.path), Path(file_range.file.path).open("rb") as file:
        left, count = _line_start(file, file_range.start), 0
        file.seek(0)
        while left and (content := file.read(min(left, BLOCK_BYTES))):
            count += content.count(b"\n")
            left -= len(content)
    return count


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


def _identified(file_range: FileRange, raw: _Counted) -> tuple[FileRange, Readable]:
    """Returns a pipe with its format, and its content from the beginning on."""
    head = b""
    # A pipe gives less than it is asked for.
    while len(head) < HEAD_BYTES and (more := raw.read(HEAD_BYTES - len(head))):
        head += more
    file = file_range.file
    found = format_of(file.path, head)
    if found.kind == "parquet":
        raise DataError(
            f"{shown_name(file.path)} is a parquet file, which cannot be read from a pipe; name "
            "the file itself"
        )
    file = file._replace(kind=found.kind, compression=found.compression)
    return file_range._replace(file=file), _Joined(head, raw)


class _Joined:
    """A pipe from its beginning on, though some of it was read already."""

    def __init__(self, head: bytes, rest: Readable) -> None:
        self._head = io.BytesIO(head)
        self._rest = rest

    def read(self, size: int) -> bytes:
        return self._head.read(size) or self._rest.read(size)


def shown_name(path: str) -> str:
    """Returns the name of an input for messages."""
    return "standard input" if path == STANDARD_INPUT else path


def _line_blocks(stream: Readable) -> Iterator[bytes]:
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


def _whole(stream: Readable) -> Iterator[bytes]:
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
        raise DataError(missing_package(file_range.file.path, "pyarrow", "data")) from error
    try:
        with pyarrow.parquet.ParquetFile(file_range.file.path) as table:
            columns = table.schema_arrow.names
            wanted = [key for key in dict.fromkeys((text_key, *row_keys)) if key in columns]
            if not wanted:
                raise DataError(
                    f"{file_range.file.path}: there is no column '{text_key}'; the columns are: "
                    f"{', '.join(columns)} (choose with --text_key)"
                )
            if row_keys:
                # All of them, so that text that is not used can be told; but no pictures.
                wanted = [
                    entry.name
                    for entry in table.schema_arrow
                    if not pyarrow.types.is_binary(entry.type)
                ]
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


def _joint_digest(digests: Sequence[str]) -> str:
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
