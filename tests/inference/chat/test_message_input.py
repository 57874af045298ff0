"""Lines become messages, joined where the writer says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rwkv_train.errors import DataError
from rwkv_train.inference.chat.message_input import MessageAbandonedError, read_messages


def messages(*lines: str | None) -> list[str]:
    left: Iterator[str | None] = iter(lines)

    def next_line(further: bool) -> str | None:
        line = next(left, None)
        if line == "^C":
            raise MessageAbandonedError
        return line

    return list(read_messages(next_line))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["a", "", "  ", "b"], ["a", "b"]),
        (["a\\", "b\\", "c", "d"], ["a\nb\nc", "d"]),
        (["a\\"], ["a\n"]),
        (['"""', "a", "", "b\\", ' """ ', "c"], ["a\n\nb\\", "c"]),
        (["a\\", "^C", "b"], ["b"]),
        (['"""', "a", "^C", "b"], ["b"]),
        ([], []),
    ],
)
def test_lines_are_joined_as_the_writer_says(lines: list[str], expected: list[str]):
    assert messages(*lines) == expected


def test_a_message_without_its_end_is_refused():
    with pytest.raises(DataError, match="no such line at its end"):
        messages('"""', "a")
