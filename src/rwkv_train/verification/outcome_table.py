"""The table that people read at the end, a row per item and backend; then the faults by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from rwkv_train.verification.outcomes import Outcome, Part, faults_of, worst_of

FAULTS_SHOWN = 30
# Names of parameters are longer than anybody wants to read in a table.
_RESULT_WIDTH = 32
_TITLES = ("what", "backend", "types", "compared", "closest to its bound", "error", "bound", "used")


class OutcomeRow(NamedTuple):
    """All comparisons of an item by one backend, and the one that is closest to its bound."""

    item: str
    backend: str
    dtypes: tuple[str, ...]
    compared: int
    worst: Outcome
    faults: int


def outcome_rows(parts: Iterable[Part]) -> list[OutcomeRow]:
    """Returns the rows in the order of the verification."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for part in parts:
        for finding in part.findings:
            groups.setdefault((finding.item, finding.backend), []).append(finding)
    return [
        OutcomeRow(
            *key,
            tuple(dict.fromkeys(f.dtype for f in found)),
            len(found),
            worst_of(found),
            len(named_faults(found)),
        )
        for key, found in groups.items()
    ]


def named_faults(findings: Iterable[Outcome]) -> list[Outcome]:
    """Returns of all comparisons that went wrong the first of every backend's result."""
    first: dict[tuple[str, str, str], Outcome] = {}
    for finding in findings:
        if not finding.is_right:
            first.setdefault((finding.item, finding.backend, finding.result), finding)
    return list(first.values())


def table_lines(parts: Sequence[Part]) -> Iterator[str]:
    """Yields the table, what was not run, the faults by name, and the last line."""
    cells = [_TITLES, *(_cells(row) for row in outcome_rows(parts))]
    widths = [max(len(row[i]) for row in cells) for i in range(len(_TITLES))]
    for row in cells:
        yield "  ".join(
            cell.rjust(width) if i in (3, 5, 6, 7) else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
    for part in parts:
        for missing in part.not_run:
            yield f"not run: {missing.item} by {missing.backend}: {missing.reason}"
        yield from (f"note: {note}" for note in part.notes)
    faults = named_faults(faults_of(parts))
    if faults:
        yield ""
        yield "faults, the first of each result; in a run the first explains those behind it:"
        yield from (f"  {fault_line(finding)}" for finding in faults[:FAULTS_SHOWN])
    if len(faults) > FAULTS_SHOWN:
        yield f"  and {len(faults) - FAULTS_SHOWN} more"
    yield verdict_line(parts)


def verdict_line(parts: Sequence[Part]) -> str:
    """Returns the last line."""
    count = len(named_faults(faults_of(parts)))
    return "RESULT: PASS" if not count else f"RESULT: {count} fault{'s' * (count > 1)}"


def fault_line(finding: Outcome) -> str:
    """Returns a fault in words: where, of which result, by how much."""
    where = f"FAULT {finding.item}, {finding.backend}, {finding.dtype}: {finding.result}"
    case = f" ({finding.case})" if finding.case else ""
    if finding.fault:
        return f"{where}{case}: {finding.fault}"
    return f"{where}{case}: error {finding.error:.2g}, at most {finding.bound:.2g}"


def _cells(row: OutcomeRow) -> tuple[str, ...]:
    worst = row.worst
    about = (row.item, row.backend, " ".join(row.dtypes), str(row.compared))
    result = worst.result if len(row.dtypes) == 1 else f"{worst.result} in {worst.dtype}"
    if len(result) > _RESULT_WIDTH:
        result = f"{result[: _RESULT_WIDTH - 3]}..."
    if worst.fault:
        return (*about, result, "", "", "FAULT")
    used = "FAULT" if row.faults else f"{worst.used:.0%} ok"
    return (*about, result, f"{worst.error:.1e}", f"{worst.bound:.1e}", used)
