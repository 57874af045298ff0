"""The text of one line of a jsonl file: a JSON object, its text under one key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import orjson

from rwkv_train.errors import DataError

_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
# Every integer of 64 bits; int() refuses those with thousands of digits.
_LONGEST_INTEGER = 20
_BYTE_ORDER_MARK = "\ufeff"


def document_text(line: bytes, text_key: str) -> str:
    """Returns the string under `text_key` of the object on a line; DataError with the reason."""
    content, strict = _parsed(line, f'{{"{text_key}": "..."}}')
    if text_key not in content:
        raise DataError(
            f"there is no key '{text_key}'; the keys are: {keys_of(content)} (choose with "
            "--text_key; "
            "conversations and prompts with answers need --chat_template)"
        )
    text = checked_text(content[text_key], text_key)
    if not strict:
        _require_utf8(text, text_key)
    return text


def line_object(line: bytes, example: str) -> dict[str, Any]:
    """Returns the JSON object on a line; DataError with the reason, which shows the example.

    A string in it may hold half of a surrogate pair, which no encoder takes.
    """
    return _parsed(line, example)[0]


def checked_text(value: object, text_key: str) -> str:
    """Returns the value itself if it is a string, else raises DataError."""
    if not isinstance(value, str):
        raise DataError(f"'{text_key}' must be a string, found {kind_of(value)}")
    return value


def python_decoder() -> json.JSONDecoder:
    """Returns the standard library's parser, for which no number is too large."""
    return json.JSONDecoder(parse_int=_integer)


def keys_of(content: Mapping[str, Any]) -> str:
    """Returns the first keys of an object on one line, for messages."""
    return ", ".join(f"{key!r:.60}".strip("'") for key in list(content)[:8]) or "none"


def kind_of(value: object) -> str:
    """Returns the name of a value's type in JSON, for messages."""
    if value is None:
        return "null"
    return _KINDS.get(type(value), "a number")


def _parsed(line: bytes, example: str) -> tuple[dict[str, Any], bool]:
    """Returns the object on a line, and whether it is JSON to the letter."""
    strict = True
    try:
        content = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        # NaN, 1e999 and the like may stand under keys that nobody asks for.
        content, strict = _as_python_reads(line, error), False
    if not isinstance(content, dict):
        raise DataError(f"expected an object such as {example}, found {kind_of(content)}")
    return content, strict


def _as_python_reads(line: bytes, refused: orjson.JSONDecodeError) -> Any:
    """Returns what Python's own parser finds on a line that the strict one refused."""
    try:
        # Files of other programs hold surrogates as they are, which Python passes on.
        text = line.decode("utf-8", "surrogatepass")
        return python_decoder().decode(text.removeprefix(_BYTE_ORDER_MARK))
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise DataError(
            f"not UTF-8 text: byte 0x{byte:02x} at position {error.start + 1}"
        ) from error
    except RecursionError as error:
        raise DataError("not JSON that can be read: it is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON: {refused.msg} (column {refused.colno})") from error


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _LONGEST_INTEGER else float(digits)


def _require_utf8(text: str, key: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"'{key}' holds a lone surrogate (half of a \\ud83d\\ude00 pair) at character "
            f"{error.start}, which UTF-8 cannot store"
        ) from error
