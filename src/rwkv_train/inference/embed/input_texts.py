"""The texts of a file, one after another: a JSON object a line, or a line each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rwkv_train.data.text.jsonl import checked_text, keys_of, line_object
from rwkv_train.errors import DataError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class InputText(NamedTuple):
    """A text, its line in the file (from 1), and its name.

    id: what the object holds under "id"; without one the text's number in the file, from 0.
    """

    line: int
    id: Any
    text: str


def input_texts(path: Path, text_key: str) -> Iterator[InputText]:
    """Yields the texts of a file in its order; of a large one a line is in memory.

    A .jsonl file holds an object a line, its text under `text_key`; lines of white space alone are
    passed over. Of every other file each line is a text, an empty one too. Raises DataError.
    """
    is_json = path.suffix == ".jsonl"
    count = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                content = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
                if is_json and not content.strip():
                    continue
                try:
                    name, text = _of_json(content, text_key) if is_json else _of_text(content)
                except DataError as error:
                    raise DataError(f"--input {path}, line {number}: {error}") from error
                yield InputText(number, count if name is None else name, text)
                count += 1
    except OSError as error:
        raise DataError(f"--input {path} cannot be read: {error.strerror}") from error


def _of_json(line: bytes, text_key: str) -> tuple[Any, str]:
    content = line_object(line, f'{{"{text_key}": "..."}}')
    if text_key not in content:
        raise DataError(
            f"there is no key '{text_key}'; the keys are: {keys_of(content)} (choose with "
            "--text_key)"
        )
    return content.get("id"), checked_text(content[text_key], text_key)


def _of_text(line: bytes) -> tuple[None, str]:
    try:
        return None, line.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8 text: byte 0x{line[error.start]:02x} at position {error.start + 1}"
        ) from error
