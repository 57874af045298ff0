"""Writes down a doctor's visit: a line a finding for people, one object of JSON for programs."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from rwkv_train.doctor.check_table import CHECKS
from rwkv_train.doctor.findings import Finding
from rwkv_train.version import code_version

# Raised when a field is removed or means something else.
SCHEMA = 1
_LABELS = {"ok": "ok", "warn": "warn", "fault": "FAULT", "skip": "skip"}
_NAME_WIDTH = max(len(check.name) for check in CHECKS)


class Visit(NamedTuple):
    """All findings of one check, and how long it took.

    is_faulty: whether there was a fault, also one that another check has told before.
    """

    name: str
    findings: list[Finding]
    seconds: float
    is_faulty: bool = False


def heading() -> str:
    """Returns the report's first line."""
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return f"rwkv-train {code_version()}, Python {platform.python_version()}, {system}"


def lines_of(visit: Visit) -> list[str]:
    """Returns a check's lines: a finding, and below it the remedy."""
    lines = []
    for finding in visit.findings:
        lines.append(f"{_LABELS[finding.level]:5}  {visit.name:{_NAME_WIDTH}}  {finding.found}")
        if finding.remedy:
            lines.append(f"{'':5}  {'':{_NAME_WIDTH}}  do: {finding.remedy}")
    return lines


def result_line(visits: Sequence[Visit]) -> str:
    """Returns the report's last line."""
    faults = count_of(visits, "fault")
    if faults == 0:
        return "RESULT: PASS"
    return f"RESULT: {faults} fault{'s' * (faults > 1)}"


def has_fault(findings: Sequence[Finding]) -> bool:
    """Tells whether one of the findings is a fault."""
    return any(finding.level == "fault" for finding in findings)


def count_of(visits: Sequence[Visit], level: str) -> int:
    """Returns how many findings are of a level."""
    return sum(finding.level == level for visit in visits for finding in visit.findings)


def json_of(visits: Sequence[Visit], seconds: float) -> str:
    """Returns all of it as one object, as docs/doctor.md describes it."""
    rows: list[dict[str, Any]] = []
    machine = None
    for visit in visits:
        for finding in visit.findings:
            row = finding.to_json()
            row["measured"] = dict(row["measured"])
            machine = row["measured"].pop("machine", machine)
            rows.append({"check": visit.name, **row})
    return json.dumps(
        {
            "program": "rwkv-doctor",
            "schema": SCHEMA,
            "code": code_version(),
            "result": "FAULT" if count_of(visits, "fault") else "PASS",
            "faults": count_of(visits, "fault"),
            "warnings": count_of(visits, "warn"),
            "seconds": round(seconds, 1),
            "checks": {visit.name: round(visit.seconds, 2) for visit in visits},
            "findings": rows,
            "machine": machine,
        },
        ensure_ascii=False,
    )


class ProgressLine:
    """A line on a terminal that tells what is going on, and is gone afterwards."""

    def __init__(self) -> None:
        self._enabled = sys.stderr is not None and sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Shows what is done now, in the place of what was."""
        if self._enabled:
            print(f"\r\033[K... {text[:100]}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Removes the line."""
        if self._enabled:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
