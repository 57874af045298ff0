"""Command-line arguments as (name, value) pairs, before anybody asks what they mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rwkv_train.errors import ConfigError

HELP = ("-h", "--help")

_BOOLEANS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


class Argument(NamedTuple):
    """One flag: `name` with underscores and without dashes; no `value` for a bare `--flag`."""

    name: str
    value: str | None


def read_arguments(argv: Sequence[str]) -> list[Argument]:
    """Returns the flags of `argv` in order: `--flag value`, `--flag=value` and `--flag`.

    A word belongs to the flag before it unless it starts with two dashes, so negative numbers are
    values.  Raises ConfigError for a word that belongs to no flag.
    """
    arguments: list[Argument] = []
    expects_value = False
    for word in argv:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            # Dashes become underscores in the name only: a value such as a path keeps its own.
            arguments.append(Argument(name.replace("-", "_"), value if equals else None))
            # After --name= the value is the empty text, and the next word belongs to no flag.
            expects_value = not equals
        elif expects_value:
            arguments[-1] = Argument(arguments[-1].name, word)
            expects_value = False
        else:
            raise ConfigError(f"{word!r} belongs to no flag; a flag is --name value")
    return arguments


def write_arguments(arguments: Iterable[Argument]) -> list[str]:
    """Returns the words of these flags, each in the form that no value can break: --name=value."""
    return [f"--{name}" if value is None else f"--{name}={value}" for name, value in arguments]


def asks_for_help(argv: Sequence[str]) -> bool:
    """Tells whether -h or --help is among the words."""
    return any(word in HELP for word in argv)


def boolean(word: str) -> bool | None:
    """Returns the truth that 0/1, true/false, yes/no or on/off names; None for other words."""
    return _BOOLEANS.get(word.strip().lower())
