"""Rows of a .csv or .tsv file, its first row the columns' names."""

from __future__ import annotations

import codecs
import csv
import sys
from collections.abc import Iterator, Sequence

from rwkv_train.data.text.unpack import Readable
from rwkv_train.errors import DataError

_DELIMITERS = ",\t;"


def csv_blocks(
    stream: Readable, path: str, keys: Sequence[str], block_bytes: int
) -> Iterator[list[dict[str, str | None]]]:
    """Yields rows as objects, about block_bytes at a time.

    Comma, tab or semicolon separate, whichever is most frequent among the columns' names. An empty
    cell is None.  Raises DataError for a file without any of the columns and for damaged rows.
    """
    # The library refuses cells above 128 KB; documents are longer.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    lines = _lines(stream, path, block_bytes)
    head = next(lines, None)
    if head is None:
        return
    delimiter = max(_DELIMITERS, key=head.count)
    (names,) = csv.reader([head], delimiter=delimiter)
    if not any(name in keys for name in names):
        raise DataError(
            f"{path}: there is no column '{keys[0]}'; the columns are: {', '.join(names)} (choose "
            "with --text_key)"
        )
    block: list[dict[str, str | None]] = []
    size = 0
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        for cells in rows:
            # A blank line is no row.
            if not cells:
                continue
            if len(cells) != len(names):
                raise DataError(
                    f"{path}, line {rows.line_num + 1}: {len(cells)} cells, expected {len(names)}; "
                    "a cell with a separator or a line break in it must stand in quotes"
                )
            block.append({name: cell or None for name, cell in zip(names, cells)})
            size += sum(map(len, cells))
            if size >= block_bytes:
                yield block
                block, size = [], 0
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num + 1}: not CSV: {error}") from error
    if block:
        yield block


def _lines(stream: Readable, path: str, block_bytes: int) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    rest = ""
    while True:
        content = stream.read(block_bytes)
        try:
            rest += decoder.decode(content, final=not content)
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise DataError(f"{path}: not UTF-8 text: byte 0x{byte:02x}") from error
        # Not splitlines(): characters such as U+2028 end no line of a table.
        *whole, rest = rest.split("\n")
        yield from (f"{line}\n" for line in whole)
        if not content:
            break
    if rest:
        yield rest
