"""Prompts from a file: a line each, as text or as JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rwkv_train.data.text.jsonl import checked_text, keys_of, line_object
from rwkv_train.errors import DataError

_KEYS = ("prompt", "text")


def prompts_of_file(path: Path, flag: str = "--prompts") -> list[str]:
    """Reads the prompts of a file, one or more.

    A .jsonl file holds an object a line, its text under "prompt" or "text"; of every other file a
    line is a prompt. Lines of white space alone are passed over.
    flag: under which the file was given, for messages. Raises DataError.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{flag} {path} cannot be read: {error.strerror}") from error
    read: Callable[[bytes], str] = _of_json if path.suffix == ".jsonl" else _of_text
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompts.append(read(line))
        except DataError as error:
            raise DataError(f"{flag} {path}, line {number}: {error}") from error
    if not prompts:
        raise DataError(f"{flag} {path} holds no prompt; a line is one")
    return prompts


def _of_json(line: bytes) -> str:
    content = line_object(line, '{"prompt": "..."}')
    key = next((key for key in _KEYS if key in content), None)
    if key is None:
        raise DataError(f"there is no key 'prompt' or 'text'; the keys are: {keys_of(content)}")
    return checked_text(content[key], key)


def _of_text(line: bytes) -> str:
    try:
        return line.removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8 text: byte 0x{line[error.start]:02x} at position {error.start + 1}"
        ) from error
