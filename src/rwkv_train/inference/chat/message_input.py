"""Messages from a terminal or a pipe: lines, joined where the writer says so."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

from rwkv_train.errors import DataError

FENCE = '"""'


class MessageAbandonedError(Exception):
    """Raised in place of a line when the writer gives the message up, by Ctrl-C."""


def input_lines(prompt: str, following: str) -> Callable[[bool], str | None]:
    """Returns a function that gives the next line, without its end; None: there are no more.

    prompt, following: shown on a terminal in front of a message and of its further lines, which
    the function's argument asks for. On a terminal a line can be edited and earlier ones recalled.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return lambda further: _piped_line()
    with suppress(ImportError):
        # Its import is what gives `input` an editor.
        import readline  # noqa: F401

    def ask(further: bool) -> str | None:
        try:
            return input(following if further else prompt)
        except KeyboardInterrupt:
            print()
            print("Ctrl-D leaves", file=sys.stderr)
            raise MessageAbandonedError from None
        except EOFError:
            print()
            return None

    return ask


def read_messages(next_line: Callable[[bool], str | None]) -> Iterator[str]:
    r'''Yields messages until there are no more lines; blank ones are passed over.

    A line is one, unless it ends in a backslash, which a further line takes the place of, or is
    """, which begins a message that the next such line ends. Raises DataError when that is missing.
    '''
    while True:
        try:
            message = _next_message(next_line)
        except MessageAbandonedError:
            continue
        if message is None:
            return
        if message.strip():
            yield message


def _next_message(next_line: Callable[[bool], str | None]) -> str | None:
    line = next_line(False)
    if line is None:
        return None
    if line.strip() == FENCE:
        lines = []
        while (line := next_line(True)) is not None and line.strip() != FENCE:
            lines.append(line)
        if line is None:
            raise DataError(f"a message that begins with {FENCE} has no such line at its end")
        return "\n".join(lines)
    message = line.removesuffix("\\")
    while line.endswith("\\"):
        line = next_line(True) or ""
        message += "\n" + line.removesuffix("\\")
    return message


def _piped_line() -> str | None:
    try:
        line = sys.stdin.readline()
        # Where no locale is set Python hands on what is no text as halves of characters.
        line.encode()
    except UnicodeError as error:
        raise DataError(
            "a line of the input is not UTF-8; convert it, for example by iconv"
        ) from error
    return line.rstrip("\r\n") if line else None
