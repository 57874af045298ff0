"""Places for second copies of states in one --state_copies: `FOLDER:keep_last=5,FOLDER`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rwkv_train.errors import ConfigError
from rwkv_train.files import expand_home

# Before a folder of the machine after rank zero's.
PARTNER = "partner:"
_RULES = ("keep_last", "keep_every", "every_steps")
_EXPECTED = "expected FOLDER or FOLDER:keep_last=2:keep_every=1000:every_steps=100, by comma"


@dataclass(frozen=True)
class CopyPlace:
    """A folder for second copies, and its rules.

    keep_last: newest copies that stay, rwkv-final.state besides; keep_every: copies of states at a
    multiple of so many steps stay too; every_steps: a state is copied once it is so many steps
    behind the copy before, None: every state. on_partner: the folder is the partner machine's.
    """

    folder: Path
    keep_last: int = 2
    keep_every: int | None = None
    every_steps: int | None = None
    on_partner: bool = False

    def __str__(self) -> str:
        kept = f"the last {self.keep_last}"
        if self.keep_every is not None:
            kept += f" and those at multiples of {self.keep_every} steps"
        often = "" if self.every_steps is None else f", one in {self.every_steps} steps"
        where = f"{self.folder} of the partner machine" if self.on_partner else self.folder
        return f"{where} ({kept}{often})"


def copy_places(state_copies: str | None) -> tuple[CopyPlace, ...]:
    """Returns the places that --state_copies names, in its order; () for None.

    Raises ConfigError for a rule or a number that cannot be, and for no folder.
    """
    if state_copies is None:
        return ()
    return tuple(_place(state_copies, item.strip()) for item in state_copies.split(","))


def copy_folders(state_copies: str | None) -> list[Path]:
    """Returns the folders of `copy_places`; raises as it does."""
    return [place.folder for place in copy_places(state_copies)]


def expand_copy_homes(state_copies: str) -> str:
    """Returns state_copies with the home folders of its items written out (`expand_home`)."""
    items = []
    for item in map(str.strip, state_copies.split(",")):
        prefix = PARTNER if item.startswith(PARTNER) else ""
        items.append(prefix + expand_home(item.removeprefix(prefix)))
    return ",".join(items)


def _place(given: str, item: str) -> CopyPlace:
    # Rules have a "=", so that a folder's name may hold colons.
    folder, *rest = item.removeprefix(PARTNER).split(":")
    while rest and "=" not in rest[0]:
        folder += ":" + rest.pop(0)
    if not folder:
        raise ConfigError(f"--state_copies {given!r} names no folder in {item!r}; {_EXPECTED}")
    numbers: dict[str, int] = {}
    for rule in rest:
        name, _, number = rule.partition("=")
        if name not in _RULES or name in numbers:
            why = "is there twice" if name in numbers else f"is none of {', '.join(_RULES)}"
            raise ConfigError(f"--state_copies {given}: the rule {rule!r} {why}; {_EXPECTED}")
        if not (number.isascii() and number.isdecimal() and int(number) >= 1):
            raise ConfigError(
                f"--state_copies {given}: {rule!r} needs a whole number from 1 on; {_EXPECTED}"
            )
        numbers[name] = int(number)
    return CopyPlace(
        Path(folder),
        numbers.get("keep_last", CopyPlace.keep_last),
        numbers.get("keep_every"),
        numbers.get("every_steps"),
        item.startswith(PARTNER),
    )
