"""Verifies kernels, torch and a card by their results: `rwkv-verify --output verification.json`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rwkv_train.command_line import (
    OneLineParser,
    invoked_name,
    let_readers_leave,
    packages_named,
    path_argument,
    perhaps,
    program,
    status_of,
)
from rwkv_train.errors import ConfigError
from rwkv_train.processors import prepare_threads
from rwkv_train.verification.item_names import BITS, CPU_KINDS, ITEMS

if TYPE_CHECKING:
    from rwkv_train.verification.outcomes import Part
    from rwkv_train.verification.verifying import ChosenItems

_DEVICES = ("all", "cpu", "cuda")
_ENDING = """items: every operator by its name (wkv4, keys, adamw, ...), and for every version
N of RWKV model-N (chunks, documents and single tokens against the whole), run-N (a tiny training
run against the stored one) and bits-N (the same run by torch's operators alone, bit for bit where
the stored one is of such a machine). exit status: 0 pass, 1 faults, 2 wrong flags or a damaged
report"""


def verification_parser() -> argparse.ArgumentParser:
    """Returns the command line; importing torch is left to `main`."""
    p = OneLineParser(
        prog=invoked_name("python -m rwkv_train.verification"),
        description="Tells whether kernels, torch and the card compute what they should: every "
        "result and gradient against fp64, and a tiny training run of every version against a "
        "stored one. About a minute.",
        epilog=_ENDING,
        allow_abbrev=False,
    )
    add = p.add_argument
    add("--quick", action="store_true", help="fewer calls, fp32 and bf16 only; about 15 seconds")
    add(
        "--only",
        nargs="+",
        default=[],
        metavar="ITEM",
        help="verify these alone, such as: wkv7 adamw run-7",
    )
    add(
        "--device",
        choices=_DEVICES,
        default="all",
        help="cpu, cuda, or the CPU and the card if there is one (all, the default)",
    )
    add("--output", type=path_argument, metavar="FILE", help="new file for the report, JSON")
    add(
        "--check",
        type=path_argument,
        metavar="FILE",
        help="verify nothing; tell whether a report is complete and unchanged",
    )
    return p


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 when something is wrong, 2 for bad input with one line.

    argv: the words after the program's name; None: those the program was called with.
    """
    arguments = verification_parser().parse_args(argv)
    let_readers_leave()
    faults: list[int] = []
    status = status_of(lambda: faults.append(_run(arguments)), prints=True)
    return status or faults[0]


def _run(a: argparse.Namespace) -> int:
    """Returns 0, or 1 when a fault was found, now or by the report that is checked."""
    _require_flags(a)
    prepare_threads()
    with packages_named():
        return _check(Path(a.check)) if a.check else _verify(a)


def _require_flags(a: argparse.Namespace) -> None:
    """Raises ConfigError for flags that are wrong, before anything is imported or computed."""
    if a.check is not None:
        given = [f"--{n}" for n in ("quick", "only", "output") if getattr(a, n)]
        given += ["--device"] * (a.device != "all")
        if given:
            raise ConfigError(f"--check reads a report and verifies nothing; leave {given[0]} out")
    for name in a.only:
        if name not in ITEMS:
            known = f"; expected some of {', '.join(ITEMS)}"
            raise ConfigError(f"--only {name} is no item{perhaps(name, ITEMS) or known}")
    bits = [name for name in a.only if name.startswith(BITS)]
    if bits and a.quick:
        raise ConfigError(f"--quick leaves {bits[0]} out; leave out one of the two")
    of_cpu = [name for name in a.only if name.startswith(CPU_KINDS)]
    if of_cpu and a.device == "cuda":
        raise ConfigError(f"--only {of_cpu[0]} is of the CPU alone; leave --device cuda out")
    if a.output is None:
        return
    if Path(a.output).exists():
        raise ConfigError(f"{a.output} exists already; remove it or choose another --output")
    if not Path(a.output).parent.is_dir():
        raise ConfigError(f"--output {a.output}: there is no folder {Path(a.output).parent}")


def _verify(a: argparse.Namespace) -> int:
    from rwkv_train.verification.outcome_table import table_lines, verdict_line
    from rwkv_train.verification.verifying import ChosenItems

    plan = ChosenItems(tuple(a.only), a.quick, _devices(a.device))
    print(_about_machine(plan), flush=True)
    parts = _parts(plan)
    print()
    *lines, last = table_lines(parts)
    for line in lines:
        print(line)
    if a.output is not None:
        _write(Path(a.output), parts, plan)
    print(last)
    return int(verdict_line(parts) != "RESULT: PASS")


def _devices(asked: str) -> tuple[str, ...]:
    """Returns the devices; raises ConfigError for a card that is not there."""
    import torch

    has_card = torch.cuda.is_available()
    if asked == "cuda" and not has_card:
        raise ConfigError("--device cuda: torch finds no card that it can use; see nvidia-smi")
    return {"all": ("cpu", *["cuda"] * has_card)}.get(asked, (asked,))


def _about_machine(plan: ChosenItems) -> str:
    """Returns the first line: who computes."""
    from rwkv_train.machine_record import machine_record

    machine = machine_record()
    cards = ", ".join(card["name"] for card in machine["cards"]) or "no card"
    if "cuda" not in plan.devices and machine["cards"]:
        cards += " (not verified)"
    return (
        f"rwkv-verify {machine['code']}: {machine['processor'] or 'unknown processor'}, "
        f"{machine['processors']} processors, torch {machine['packages']['torch']}, {cards}"
    )


def _parts(plan: ChosenItems) -> list[Part]:
    """Returns what was found out, having told of every item as it was done."""
    from rwkv_train.verification.outcomes import faults_of
    from rwkv_train.verification.verifying import steps_of, verified

    steps, parts = steps_of(plan), []
    began = time.perf_counter()
    for number, part in enumerate(verified(steps), 1):
        parts.append(part)
        now = time.perf_counter()
        wrong = len(faults_of([part]))
        told = f"{wrong} WRONG of {len(part.findings)}" if wrong else f"{len(part.findings)} right"
        print(f"[{number:2}/{len(steps)}] {part.item}: {told}, {now - began:.1f} s", flush=True)
        began = now
    return parts


def _write(path: Path, parts: list[Part], plan: ChosenItems) -> None:
    from rwkv_train.verification.speeds import measured_speeds
    from rwkv_train.verification.verification_file import verification_record, write_verification

    speeds = {part.item: part.tokens_per_second for part in parts if part.tokens_per_second}
    record = verification_record(parts, plan, measured_speeds(speeds, plan.devices[-1]))
    write_verification(path, record)
    print(f"wrote {path}")


def _check(path: Path) -> int:
    from rwkv_train.verification.golden_file import golden_digest
    from rwkv_train.verification.verification_file import kernels_digest, read_verification

    content = read_verification(path)
    machine = content["machine"]
    cards = ", ".join(card["name"] for card in machine["cards"]) or "no card"
    compared = sum(row["compared"] for row in content["verified"])
    print(f"{path}: complete and unchanged")
    print(
        f"made {content['date']} by {machine['code']}: {machine['processor']}, torch "
        f"{machine['packages']['torch']}, {cards}; {compared} comparisons"
        + (", quick" if content["quick"] else "")
        + (f", only {' '.join(content['only'])}" if content["only"] else "")
    )
    for name, digest in (("kernels", kernels_digest()), ("golden", golden_digest())):
        if content["digests"][name] != digest:
            what = {"kernels": "sources of the kernels", "golden": "golden file"}[name]
            print(f"note: its {what} are other ones than this program's")
    print(f"RESULT: {content['result']}")
    return int(content["result"] != "PASS")


if __name__ == "__main__":
    sys.exit(main())
