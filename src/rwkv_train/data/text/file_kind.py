"""Tells what a file holds by its first bytes; its name decides only what bytes cannot tell."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Literal, NamedTuple

from rwkv_train.data.text.jsonl import python_decoder
from rwkv_train.data.text.unpack import (
    COMPRESSION_ENDINGS,
    COMPRESSION_MAGICS,
    Compression,
    unpacked,
)
from rwkv_train.errors import DataError

Kind = Literal["jsonl", "json", "txt", "parquet", "csv"]
# Kinds that are read as one JSON value a line, and those that are read as rows of columns.
JSON_KINDS = ("jsonl", "json")
ROW_KINDS = ("parquet", "csv")
# bzip2 unpacks nothing before it has 900 KB.
HEAD_BYTES = 1 << 20
_ENDINGS: dict[str, Kind] = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "txt",
    ".text": "txt",
    ".md": "txt",
    ".markdown": "txt",
    ".rst": "txt",
}
_UNPACK = "unpack it and name the files in it"
_UTF8 = "turn it into UTF-8, for example with iconv -f {} -t UTF-8"
_EXPORT = "write it as .parquet or .jsonl with the program that made it"
_TEXT = "take the text out of it, into .txt files or a .jsonl"
# First bytes: what the file is, and what to do instead. Longer beginnings come before shorter.
_FOREIGN: dict[bytes, tuple[str, str]] = {
    b"MMIDIDX": (
        "the index of data that is already made",
        "train on it with train.py --data_file PREFIX, or look at it with --inspect PREFIX",
    ),
    b"PK\x03\x04": ("a zip archive, or a document or a checkpoint that is one", _UNPACK),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", _UNPACK),
    b"Rar!": ("a rar archive", _UNPACK),
    b"%PDF": ("a PDF document", _TEXT),
    b"{\\rtf": ("an RTF document", _TEXT),
    b"\xd0\xcf\x11\xe0": ("an old office document", _TEXT),
    b"ARROW1": ("an Arrow (Feather) file", _EXPORT),
    b"\xff\xff\xff\xff": (
        "an Arrow stream, as the datasets library caches it",
        "load it there and call to_parquet or to_json",
    ),
    b"Obj\x01": ("an Avro file", _EXPORT),
    b"ORC": ("an ORC file", _EXPORT),
    b"SQLite format 3": ("an SQLite database", "export the table as .csv"),
    b"\x89HDF": ("an HDF5 file", _EXPORT),
    b"\x93NUMPY": (
        "an array of NumPy",
        "if it holds token ids, train.py --data_type numpy reads it",
    ),
    b"\x80\x02": ("a pickle, which is not loaded because it could run code", _EXPORT),
    b"\x80\x04": ("a pickle, which is not loaded because it could run code", _EXPORT),
    b"\xff\xfe\x00\x00": ("UTF-32 text", _UTF8.format("UTF-32")),
    b"\x00\x00\xfe\xff": ("UTF-32 text", _UTF8.format("UTF-32")),
    b"\xff\xfe": ("UTF-16 text", _UTF8.format("UTF-16")),
    b"\xfe\xff": ("UTF-16 text", _UTF8.format("UTF-16")),
}
_TAR_PLACE, _TAR = 257, b"ustar"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_WHITE_SPACE = b" \t\r\n"


class FileFormat(NamedTuple):
    """The kind of content of a file, and its compression."""

    kind: Kind
    compression: Compression | None


def format_of(path: str, head: bytes) -> FileFormat:
    """Returns the format of a file; DataError for one that is no text, with what to do.

    head: its first bytes, all of them or HEAD_BYTES.
    """
    compression = _by_magic(head)
    name = Path(path)
    named = COMPRESSION_ENDINGS.get(name.suffix)
    if compression is None and named and not _looks_like_json(head):
        # Unpacking will tell what is wrong with it.
        return FileFormat(_kind_by_name(Path(name.stem)), named)
    inner = head if compression is None else _unpacked_head(path, head, compression)
    _refuse_foreign(path, inner, compression)
    stem = Path(name.stem) if named else name
    if inner.startswith(b"PAR1"):
        if compression:
            raise DataError(f"{path}: a parquet file is compressed inside; unpack it first")
        return FileFormat("parquet", None)
    kind = _kind_by_name(stem)
    if kind == "parquet" and compression:
        raise DataError(f"{path}: a parquet file is compressed inside; unpack it first")
    # A text may begin with a bracket, and so may the head of a table.
    if kind in ("jsonl", "parquet") and _looks_like_json(inner):
        kind = _json_kind(inner)
    return FileFormat(kind, compression)


def _by_magic(head: bytes) -> Compression | None:
    for magic, compression in COMPRESSION_MAGICS.items():
        if head.startswith(magic):
            return compression
    return None


def _kind_by_name(name: Path) -> Kind:
    return _ENDINGS.get(name.suffix.lower(), "jsonl")


def _unpacked_head(path: str, head: bytes, compression: Compression) -> bytes:
    stream = unpacked(io.BytesIO(head), compression, path)
    try:
        return stream.read(HEAD_BYTES // 4)
    except DataError:
        raise
    except Exception:
        # Damaged, which reading all of it reports with the reason; each library has its own error.
        return b""


def _refuse_foreign(path: str, head: bytes, compression: Compression | None) -> None:
    packed = f" (inside {compression})" if compression else ""
    for magic, (what, remedy) in _FOREIGN.items():
        if head.startswith(magic):
            raise DataError(f"{path} is {what}{packed}, no text; {remedy}")
    if head[_TAR_PLACE:].startswith(_TAR):
        raise DataError(f"{path} is a tar archive{packed}; {_UNPACK}")
    begin = head[:256].removeprefix(_BYTE_ORDER_MARK).lstrip(_WHITE_SPACE).lower()
    if begin.startswith((b"<!doctype html", b"<html", b"<?xml")):
        raise DataError(f"{path} is HTML or XML{packed}, whose tags would be learnt; {_TEXT}")


def _looks_like_json(head: bytes) -> bool:
    begin = head.removeprefix(_BYTE_ORDER_MARK).lstrip(_WHITE_SPACE)
    return begin.startswith((b"{", b"["))


def _json_kind(head: bytes) -> Literal["jsonl", "json"]:
    """Returns "json" for an array and for objects that do not have a line each."""
    text = head.removeprefix(_BYTE_ORDER_MARK).lstrip(_WHITE_SPACE).decode("utf-8", "replace")
    if text.startswith("["):
        return "json"
    try:
        _, end = python_decoder().raw_decode(text)
    except (json.JSONDecodeError, RecursionError):
        # An object that is longer than the head: a line ends like this in the midst of one only.
        first = text.partition("\n")[0].rstrip()
        cut_off = len(head) >= HEAD_BYTES // 4
        return "json" if cut_off and first.endswith(("{", "[", ",", ":")) else "jsonl"
    # Raw line breaks are no part of a JSON string, so that a broken line never continues.
    spread = "\n" in text[:end]
    old_macintosh = "\n" not in text and text[end:].startswith("\r{")
    return "json" if spread or old_macintosh else "jsonl"
