"""Columns of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def text_table(heads: Sequence[str], rows: Iterable[Sequence[str]], sides: str) -> list[str]:
    """Returns lines with columns, the rows under their heads.

    sides: l or r for each column, left or right.
    """
    table = [list(heads), *(["  " + row[0], *row[1:]] for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(heads))]
    lines = []
    for row in table:
        cells = [
            cell.ljust(width) if side == "l" else cell.rjust(width)
            for cell, width, side in zip(row, widths, sides)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
