"""JSON arrays and pretty-printed objects as blocks of lines: a value a line, as in a jsonl."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator

from rwkv_train.data.text.jsonl import python_decoder
from rwkv_train.data.text.unpack import Readable
from rwkv_train.errors import DataError

_WHITE_SPACE = " \t\r\n\ufeff"
# An error so near to the end of what was read may only be due to the end.
_CUT = 32


def value_lines(stream: Readable, path: str, block_bytes: int) -> Iterator[bytes]:
    """Yields whole lines, about block_bytes at a time, in memory for a block and the longest value.

    stream: an array of values, several arrays, or values one behind another. path: for messages.
    Raises DataError, with line and column, where it is no JSON.
    """
    lines: list[bytes] = []
    size = 0
    for value in _Values(stream, path, block_bytes):
        # Line breaks in JSON stand between tokens only, where a space does as well.
        line = value.replace("\n", " ").replace("\r", " ").encode("utf-8", "surrogatepass")
        lines.append(line)
        size += len(line) + 1
        if size >= block_bytes:
            yield b"\n".join([*lines, b""])
            lines, size = [], 0
    if lines:
        yield b"\n".join([*lines, b""])


class _Values:
    """The source of each value, cut by Python's own parser."""

    def __init__(self, stream: Readable, path: str, block_bytes: int) -> None:
        self._stream = stream
        self._path = path
        self._block_bytes = block_bytes
        self._decoder = python_decoder()
        self._to_text = codecs.getincrementaldecoder("utf-8")("surrogatepass")
        self._text = ""
        self._place = 0
        self._ended = False
        # Lines and the last line's characters before `_text`, for messages.
        self._lines = 1
        self._columns = 1

    def __iter__(self) -> Iterator[str]:
        while (begin := self._next()) is not None:
            if begin != "[":
                yield self._value()
                continue
            self._place += 1
            yield from self._array()

    def _array(self) -> Iterator[str]:
        """Yields the values of an array whose bracket has been read."""
        if self._next() == "]":
            self._place += 1
            return
        while True:
            if self._next() is None:
                raise self._fault("the file ends inside an array; it is cut off")
            yield self._value()
            separator = self._next()
            self._place += 1
            if separator == "]":
                return
            if separator != ",":
                self._place -= 1
                raise self._fault("expected a comma or ] behind a value")

    def _next(self) -> str | None:
        """Returns the next character that is no white space, at `_place`; None at the end."""
        while True:
            while self._place < len(self._text):
                character = self._text[self._place]
                if character not in _WHITE_SPACE:
                    return character
                self._place += 1
            if not self._read():
                return None

    def _value(self) -> str:
        while True:
            try:
                _, end = self._decoder.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                near = error.pos >= len(self._text) - _CUT
                if (near or error.msg.startswith("Unterminated")) and self._read():
                    continue
                self._place = min(error.pos, len(self._text))
                raise self._fault(error.msg) from error
            except RecursionError as error:
                raise self._fault("a value is nested too deeply") from error
            # A number, true or null may go on in what was not read yet.
            if end == len(self._text) and self._read():
                continue
            value = self._text[self._place : end]
            self._place = end
            return value

    def _read(self) -> bool:
        """Appends more of the file, and forgets what was used; returns False at the end."""
        if self._ended:
            return False
        used = self._text[: self._place]
        if breaks := used.count("\n"):
            self._lines += breaks
            self._columns = len(used) - used.rfind("\n")
        else:
            self._columns += len(used)
        rest = self._text[self._place :]
        self._place = 0
        # As much again as there is: a long value is then parsed a few times only.
        content = self._stream.read(max(self._block_bytes, len(rest)))
        self._ended = not content
        try:
            self._text = rest + self._to_text.decode(content, final=self._ended)
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            self._text = rest
            raise self._fault(f"byte 0x{byte:02x} is not UTF-8 text") from error
        return True

    def _fault(self, reason: str) -> DataError:
        before = self._text[: self._place]
        line = self._lines + before.count("\n")
        start = before.rfind("\n")
        column = self._columns + len(before) if start < 0 else len(before) - start
        return DataError(f"{self._path}, line {line}, column {column}: not JSON: {reason}")
