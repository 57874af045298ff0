"""Limits of a number, written at its field in the schema: `Annotated[int | None, AtLeast(1)]`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


class Limit(ABC):
    """A condition on a field's value."""

    @abstractmethod
    def fault(self, value: float) -> str | None:
        """Returns what is wrong with `value`, to stand behind flag and value; None if nothing."""


@dataclass(frozen=True)
class AtLeast(Limit):
    """From `lowest` on."""

    lowest: float

    def fault(self, value: float) -> str | None:
        """Returns the fault of a value below `lowest`."""
        return None if value >= self.lowest else f": must be at least {self.lowest:g}"


@dataclass(frozen=True)
class Above(Limit):
    """Above `bound`."""

    bound: float

    def fault(self, value: float) -> str | None:
        """Returns the fault of a value at or below `bound`."""
        return None if value > self.bound else f": must be above {self.bound:g}"


@dataclass(frozen=True)
class Between(Limit):
    """From `lowest` to `highest`: what is more is a typing error that would take for ever."""

    lowest: int
    highest: int

    def fault(self, value: float) -> str | None:
        """Returns the fault of a value outside."""
        if value < self.lowest:
            return f": must be at least {self.lowest}"
        return None if value <= self.highest else f": must be at most {self.highest}"


@dataclass(frozen=True)
class Share(Limit):
    """From 0 to below 1: a rate of dropout or of an exponential average."""

    def fault(self, value: float) -> str | None:
        """Returns the fault of a value that is no share."""
        return None if 0 <= value < 1 else ": must be at least 0 and below 1"


@dataclass(frozen=True)
class MultipleOf(Limit):
    """A multiple of `unit`."""

    unit: int

    def fault(self, value: float) -> str | None:
        """Returns the fault of another number, with the nearest multiple."""
        if value % self.unit == 0:
            return None
        return f" is not a multiple of {self.unit}; use {self.nearest(value)}"

    def nearest(self, value: float) -> int:
        """Returns the nearest multiple that is a size: half a unit and less round to 0."""
        return max(1, round(value / self.unit)) * self.unit
