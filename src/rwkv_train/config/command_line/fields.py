"""The schema's fields as a table: the name, the section and the values of each."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any, NamedTuple

from rwkv_train.config.command_line.argv import boolean
from rwkv_train.config.schema import RunConfig
from rwkv_train.config.sections import Section


class Field(NamedTuple):
    """One leaf of the configuration.

    kind: int, float, str or bool; choices: the allowed values, empty if any; optional: None is
    allowed and means "derive it". hint: the annotation that says all three, without its limits.
    """

    section: str
    name: str
    kind: type
    choices: tuple[str | int, ...]
    optional: bool
    hint: Any

    @property
    def path(self) -> str:
        """section.name, as in a YAML file."""
        return f"{self.section}.{self.name}"

    @property
    def expected(self) -> str:
        """The values that a user may write here, in words."""
        words = {
            int: "a whole number",
            float: "a number",
            str: "a text",
            bool: "0/1, True/False or yes/no",
        }[self.kind]
        if self.choices:
            words = "one of " + ", ".join(str(choice) for choice in self.choices)
        return words + (" or None" if self.optional else "")

    def checked(self, value: object) -> object:
        """Returns a value of a YAML file in the field's type; raises ValueError if it has none."""
        if value is None and self.optional:
            return None
        if isinstance(value, (list, dict)):
            # Not written out: made of aliases it may be longer than memory.
            raise ValueError(f"a {type(value).__name__} is not {self.expected}")
        if isinstance(value, bool) and "on" in self.choices:
            # YAML 1.1 reads a bare on and off as truth values.
            value = "on" if value else "off"
        # Compared as texts: YAML reads rwkv_version: 7 as a number, and the choice is the text 7.
        for choice in self.choices:
            if str(choice) == str(value):
                return choice
        if self.kind is bool and isinstance(value, (bool, int, str)):
            value = boolean(str(value))
        # YAML 1.1 reads 6e-4 as a text (it wants 6.0e-4); people mean the number.
        if self.kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
            value = float(value)
        # isinstance would let True pass for a whole number.
        if self.choices or type(value) is not self.kind:
            raise ValueError(f"{value!r} is not {self.expected}")
        return value


@functools.cache
def fields() -> dict[str, Field]:
    """Returns all fields by leaf name, in the order of the schema."""
    table: dict[str, Field] = {}
    for section, section_type in typing.get_type_hints(RunConfig).items():
        # Without the limits in Annotated, which `check_limits` reads by itself.
        hints = typing.get_type_hints(section_type)
        for leaf in dataclasses.fields(section_type):
            # The command line is flat: a leaf's name alone must tell its section.
            assert leaf.name not in table, f"{leaf.name} occurs in two sections"
            table[leaf.name] = _field(section, leaf.name, hints[leaf.name])
    return table


@functools.cache
def sections() -> dict[str, type[Section]]:
    """Returns section name -> dataclass, in the order of the schema."""
    return typing.get_type_hints(RunConfig)


def _field(section: str, name: str, hint: object) -> Field:
    parts = typing.get_args(hint) if _is_union(hint) else (hint,)
    (kind,) = [part for part in parts if part is not type(None)]
    choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    value_type = type(choices[0]) if choices else kind
    return Field(section, name, value_type, choices, len(parts) > 1, hint)


def _is_union(hint: object) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)
