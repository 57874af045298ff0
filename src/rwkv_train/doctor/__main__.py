"""Finds why a run does not start, or is slow: `rwkv-doctor` looks at everything that it needs.

It begins where torch, Lightning, DeepSpeed or numpy are missing or broken: what is imported here is
the standard library and this package, and every library is imported inside its check.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rwkv_train.command_line import (
    OneLineParser,
    invoked_name,
    path_argument,
    perhaps,
    program,
    status_of,
)
from rwkv_train.doctor.check_runner import make_check
from rwkv_train.doctor.check_table import CHECKS, Check
from rwkv_train.doctor.doctor_report import (
    ProgressLine,
    Visit,
    count_of,
    has_fault,
    heading,
    json_of,
    lines_of,
    result_line,
)
from rwkv_train.doctor.findings import skipped
from rwkv_train.errors import ConfigError

_ENDING = """Every line begins with ok, warn (slower, or a danger), FAULT (a run does not start, or
is several times slower) or skip (nothing to look at). Below a fault stands what to do. Exit status:
0 without faults, 1 with faults, 2 for bad flags."""


def doctor_parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    p = OneLineParser(
        prog=invoked_name("python doctor.py"),
        description="Looks at everything that a run needs, and names faults and their remedies.",
        epilog=_ENDING,
        allow_abbrev=False,
    )
    add = p.add_argument
    add(
        "--folder",
        type=path_argument,
        default=".",
        metavar="PATH",
        help="project folder of the run (--proj_dir), whose disk is tried; need not exist "
        "(default: the current one)",
    )
    add("--quick", action="store_true", help="without the checks that measure for seconds")
    add(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="this check only; may be repeated, or name several with commas",
    )
    add("--list", action="store_true", help="list the checks and what they look at, and end")
    add("--json", action="store_true", help="print one object (docs/doctor.md) in the lines' place")
    return p


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 without faults, 1 with faults, 2 for bad flags.

    argv: the words after the program's name; None: those the program was called with.
    """
    arguments = doctor_parser().parse_args(argv)
    visits: list[Visit] = []
    with _leaving_on_sigterm():
        status = status_of(lambda: _examine(arguments, visits), prints=True)
    return status or int(count_of(visits, "fault") > 0)


@contextmanager
def _leaving_on_sigterm() -> Iterator[None]:
    """Lets SIGTERM end the block as an exception does, so that no child outlives it."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _examine(a: argparse.Namespace, visits: list[Visit]) -> None:
    """Makes the checks that were asked for and prints the report; fills `visits`."""
    checks = _chosen(a)
    if a.list:
        width = max(len(check.name) for check in CHECKS)
        for check in checks:
            print(f"{check.name:{width}}  {check.asks}")
        return
    began, progress = time.monotonic(), ProgressLine()
    if not a.json:
        print(heading(), flush=True)
    for check in checks:
        progress.show(check.name)
        visits.append(_visited(check, Path(a.folder), visits, progress))
        progress.clear()
        if not a.json:
            print("\n".join(lines_of(visits[-1])), flush=True)
    seconds = time.monotonic() - began
    if a.json:
        print(json_of(visits, seconds))
        return
    warnings = count_of(visits, "warn")
    told = f"{len(checks)} check{'s' * (len(checks) != 1)} in {seconds:.0f} s"
    print(f"{told}, {warnings} warning{'s' * (warnings != 1)}\n{result_line(visits)}")


def _visited(check: Check, folder: Path, visits: Sequence[Visit], progress: ProgressLine) -> Visit:
    began = time.monotonic()
    lacking = [visit.name for visit in visits if visit.name in check.needs and visit.is_faulty]
    if lacking:
        # What needs this one cannot be made either.
        because = [skipped(f"not without {lacking[0]}, which has a fault")]
        return Visit(check.name, because, 0.0, is_faulty=True)
    found = make_check(check, folder, lambda doing: progress.show(f"{check.name}: {doing}"))
    told = {finding.remedy for visit in visits for finding in visit.findings}
    # What the same command remedies is one fault, however many checks meet it.
    shown = [
        replace(finding, level="skip", found=f"{finding.found} (as above)", remedy="")
        if finding.level == "fault" and finding.remedy in told
        else finding
        for finding in found
    ]
    return Visit(check.name, shown, time.monotonic() - began, is_faulty=has_fault(found))


def _chosen(a: argparse.Namespace) -> list[Check]:
    """Returns the checks in the table's order; raises ConfigError for a name that is not there."""
    known = [check.name for check in CHECKS]
    wanted = [name.strip() for words in a.only for name in words.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise ConfigError(
                f"--only {name}: there is no such check{perhaps(name, known)}; --list names them"
            )
    if a.list and a.json:
        raise ConfigError("--list prints lines, not the object of --json; give one of them")
    if wanted and a.quick:
        raise ConfigError("--only names the checks, and --quick leaves some out; give one of them")
    if a.only and not wanted:
        raise ConfigError("--only names no check; --list names them")
    return [
        check
        for check in CHECKS
        if (check.name in wanted if wanted else not (a.quick and check.long))
    ]


if __name__ == "__main__":
    sys.exit(main())
