"""The fields of a request's JSON object, each taken once and checked; what is left is refused."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import orjson

from rwkv_train.command_line import perhaps
from rwkv_train.data.text.jsonl import kind_of
from rwkv_train.serving.openai_api.api_errors import RequestError


def json_object(content: bytes) -> dict[str, Any]:
    """Returns the object that a request's body holds; RequestError for anything else."""
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise RequestError(f"the body must be a JSON object, found {kind_of(found)}")
    return found


class RequestFields:
    """Values by name; null is as good as absent. RequestError names the field that is at fault."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = {name: value for name, value in values.items() if value is not None}
        self._known: set[str] = set()

    def take(self, name: str, default: Any = None) -> Any:
        """Returns a value of any kind."""
        self._known.add(name)
        return self._values.get(name, default)

    def text(self, name: str, default: str | None = None) -> str | None:
        """Returns a string."""
        value = self.take(name, default)
        if value is not None and not isinstance(value, str):
            raise _wrong_kind(name, value, "a string")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """Returns true or false."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise _wrong_kind(name, value, "true or false")
        return value

    def number(self, name: str, default: float | None = None) -> float | None:
        """Returns a finite number."""
        value = self.take(name, default)
        # true is an int in Python.
        if value is not None and (type(value) not in (int, float) or not math.isfinite(value)):
            raise _wrong_kind(name, value, "a number")
        return None if value is None else float(value)

    def integer(self, name: str, default: int | None, *, lowest: int, highest: int) -> int | None:
        """Returns a whole number within limits."""
        value = self.take(name, default)
        if value is None:
            return None
        if type(value) is not int:
            raise _wrong_kind(name, value, "a whole number")
        if not lowest <= value <= highest:
            raise RequestError(
                f"'{name}' is {value}; it must be between {lowest} and {highest}", param=name
            )
        return value

    def choice(self, name: str, known: Collection[str], default: str) -> str:
        """Returns one of some words."""
        value = self.text(name, default) or default
        if value not in known:
            words = ", ".join(known)
            raise RequestError(f"'{name}' is {value!r:.60}; it must be one of {words}", param=name)
        return value

    def only(self, name: str, *allowed: Any) -> None:
        """Refuses a field of which only some values, those that change nothing, are understood."""
        value = self.take(name)
        if value is not None and value not in allowed:
            told = " or ".join(orjson.dumps(entry).decode() for entry in allowed)
            raise RequestError(
                f"'{name}' is not supported here; leave it out{f', or give {told}' * bool(told)}",
                param=name,
                code="unsupported_parameter",
            )

    def ignore(self, *names: str) -> None:
        """Passes over fields that do not change an answer."""
        self._known.update(names)

    def refuse_others(self) -> None:
        """Refuses what nobody has asked for: it might have been meant to change the answer."""
        for name in self._values:
            if name not in self._known:
                raise RequestError(
                    f"unknown field {name!r:.60}{perhaps(name, self._known)}",
                    param=name[:60],
                    code="unknown_parameter",
                )


def _wrong_kind(name: str, value: Any, expected: str) -> RequestError:
    return RequestError(f"'{name}' must be {expected}, found {kind_of(value)}", param=name)
