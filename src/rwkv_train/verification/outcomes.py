"""Findings: a comparison each, with its error and how large that may be."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple


class Outcome(NamedTuple):
    """One comparison.

    item: what was verified: an operator, or a part of a version's run.  backend, dtype: by what.
    result: which of its results.  case: of which call, or at which step.
    error: how far it is off, relative.  bound: how far it may be.  least: the error of the exact
    result stored in the result's type, below which none can be.
    fault: what went wrong without a number, "" otherwise.
    """

    item: str
    backend: str
    dtype: str
    result: str
    case: str
    error: float = 0.0
    bound: float = 0.0
    least: float = 0.0
    fault: str = ""

    @property
    def is_right(self) -> bool:
        # A NaN is not below anything.
        return not self.fault and self.error <= self.bound

    @property
    def used(self) -> float:
        """The part of the allowance that is used: of the bound, above what no result can avoid."""
        if not self.is_right:
            return math.inf
        room = self.bound - self.least
        return max(0.0, self.error - self.least) / room if room > 0 else 0.0


class NotRun(NamedTuple):
    """A backend that this machine cannot run, and why."""

    item: str
    backend: str
    reason: str


class Part(NamedTuple):
    """Everything that was found out about an item; tokens_per_second: of a run, else 0."""

    item: str
    findings: tuple[Outcome, ...]
    not_run: tuple[NotRun, ...] = ()
    notes: tuple[str, ...] = ()
    tokens_per_second: float = 0.0


def faults_of(parts: Iterable[Part]) -> list[Outcome]:
    """Returns the comparisons that went wrong, in the order of the verification."""
    return [finding for part in parts for finding in part.findings if not finding.is_right]


def worst_of(findings: Iterable[Outcome]) -> Outcome:
    """Returns the comparison that uses most of what is allowed."""
    return max(findings, key=lambda finding: finding.used)
