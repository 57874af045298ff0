"""The text of one line of a jsonl file: a JSON object, its text under one key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from rwkv_train.errors import DataError

_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}


def document_text(line: bytes, text_key: str) -> str:
    """Returns the string under `text_key` of the object on a line; DataError with the reason."""
    content = line_object(line, f'{{"{text_key}": "..."}}')
    if text_key not in content:
        raise DataError(
            f"there is no key '{text_key}'; the keys are: {keys_of(content)} (choose with "
            "--text_key; "
            "conversations and prompts with answers need --chat_template)"
        )
    return checked_text(content[text_key], text_key)


def line_object(line: bytes, example: str) -> dict[str, Any]:
    """Returns the JSON object on a line; DataError with the reason, which shows the example."""
    try:
        content = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise DataError(_reason(line, error)) from error
    if not isinstance(content, dict):
        raise DataError(f"expected an object such as {example}, found {kind_of(content)}")
    return content


def checked_text(value: object, text_key: str) -> str:
    """Returns the value itself if it is a string, else raises DataError."""
    if not isinstance(value, str):
        raise DataError(f"'{text_key}' must be a string, found {kind_of(value)}")
    return value


def _reason(line: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        # Only after a fault: orjson checks UTF-8 itself, so that sound lines are decoded once.
        line.decode()
    except UnicodeDecodeError as undecodable:
        byte = line[undecodable.start]
        return f"not UTF-8 text: byte 0x{byte:02x} at position {undecodable.start + 1}"
    if "surrogate" in error.msg:
        return "a lone surrogate (half of a \\ud83d\\ude00 pair), which UTF-8 cannot store"
    return f"not JSON: {error.msg} (column {error.colno})"


def keys_of(content: Mapping[str, Any]) -> str:
    """Returns the first keys of an object on one line, for messages."""
    return ", ".join(f"{key!r:.60}".strip("'") for key in list(content)[:8]) or "none"


def kind_of(value: object) -> str:
    """Returns the name of a value's type in JSON, for messages."""
    if value is None:
        return "null"
    return _KINDS.get(type(value), "a number")
