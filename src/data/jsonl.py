"""Documents of a jsonl file, one at a time: a JSON object a line, its text under one key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import orjson

from src.errors import DataError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}


class Document(NamedTuple):
    """One document and where it came from."""

    file: str
    line: int
    """counted from 1, blank lines included"""
    text: str
    bytes: int
    """length of the line in the file"""

    @property
    def place(self) -> str:
        """File and line number, for messages."""
        return f"{self.file}, line {self.line}"


def read_documents(path: str | Path, text_key: str = "text") -> Iterator[Document]:
    """Yields the documents of a file in order; blank lines are skipped, a leading mark is ignored.

    Raises DataError, with file and line number, when a line is not a JSON object with a string
    under `text_key`, and when the file is missing or holds no document.
    """
    name, number = str(path), 0
    try:
        with Path(path).open("rb") as lines:
            for line_number, line in enumerate(lines, 1):
                content = line.removeprefix(_BYTE_ORDER_MARK) if line_number == 1 else line
                if content.isspace() or not content:
                    continue
                number += 1
                text = _text(content, text_key, f"{name}, line {line_number}")
                yield Document(name, line_number, text, len(line))
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror}") from error
    if number == 0:
        raise DataError(f"{name} holds no documents; expected one JSON object a line")


def _text(line: bytes, text_key: str, place: str) -> str:
    try:
        content = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise DataError(f"{place}: {_reason(line, error)}") from error
    if not isinstance(content, dict):
        raise DataError(
            f'{place}: expected an object such as {{"{text_key}": "..."}}, found {_kind(content)}'
        )
    if text_key not in content:
        keys = ", ".join(list(content)[:8]) or "none"
        raise DataError(
            f"{place}: there is no key '{text_key}'; the keys are: {keys} (choose with --text_key)"
        )
    text = content[text_key]
    if not isinstance(text, str):
        raise DataError(f"{place}: '{text_key}' must be a string, found {_kind(text)}")
    return text


def _reason(line: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        line.decode()
    except UnicodeDecodeError as undecodable:
        byte = line[undecodable.start]
        return f"not UTF-8 text: byte 0x{byte:02x} at position {undecodable.start + 1}"
    if "surrogate" in error.msg:
        return "a lone surrogate (half of a \\ud83d\\ude00 pair), which UTF-8 cannot store"
    return f"not JSON: {error.msg} (column {error.colno})"


def _kind(value: object) -> str:
    if value is None:
        return "null"
    return _KINDS.get(type(value), "a number")
