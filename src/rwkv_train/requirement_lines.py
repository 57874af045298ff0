"""Compares installed versions with lines of requirements; standard library only.

It serves where pip's own `packaging` may be missing, and only the lines that this project writes:
a package and versions by ==, >= and <.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_LINE = re.compile(r"([A-Za-z0-9_.-]+)\s*(.*)")
_CONDITION = re.compile(r"\s*(==|>=|<)\s*([\w.]+)\s*")


def split_line(line: str) -> tuple[str, list[tuple[str, str]]]:
    """Returns the package of a requirement line and its conditions: [(">=", "1.26"), ...].

    Raises ValueError for a line that says anything else, such as a marker.
    """
    parts = _LINE.fullmatch(line)
    found = [_CONDITION.fullmatch(text) for text in parts.group(2).split(",")] if parts else []
    conditions = [match.groups() for match in found if match is not None]
    if parts is None or (parts.group(2) and len(conditions) < len(found)):
        raise ValueError(f"'{line}' is not a package with versions, as in numpy>=1.26,<3")
    return parts.group(1), [(operator, version) for operator, version in conditions]


def satisfies(version: str, conditions: Sequence[tuple[str, str]]) -> bool:
    """Tells whether a version fulfils all conditions, compared number by number."""
    installed = version_numbers(version)
    for operator, wanted in conditions:
        limit = version_numbers(wanted)
        width = max(len(limit), len(installed))
        have, limit = (v + (0,) * (width - len(v)) for v in (installed, limit))
        if not {"==": have == limit, ">=": have >= limit, "<": have < limit}[operator]:
            return False
    return True


def version_numbers(text: str) -> tuple[int, ...]:
    """Returns the leading numbers of a version: "2.13.0+cpu" -> (2, 13, 0)."""
    leading = re.split(r"[^0-9.]", text, maxsplit=1)[0]
    return tuple(int(n) for n in leading.split(".") if n)
