"""Speeds that were measured: the table `measurements.csv`, and what it says about a call.

A row is one backend on one shape on one machine; `python -m benchmarks.wkv --record FILE` writes
them. Nothing here decides: `rwkv_train.ops.backends.dispatch` asks for the ranking and compares.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

FILE = Path(__file__).with_name("measurements.csv")
FORWARD, BOTH = "forward", "forward + backward"

# The columns that are not text.
_NUMBERS = {"batch": int, "time": int, "heads": int, "size": int, "ms": float}


class Workload(NamedTuple):
    """All that decides how fast the backends are: the operator, the machine and the shape.

    card: see `card_of`. dtype: as "bfloat16". pairs: batch rows times heads (wkv4: channels, with
    size 1); time: tokens; size: channels per head.
    """

    op: str
    direction: str
    card: str
    dtype: str
    pairs: int
    time: int
    size: int


class Measurement(NamedTuple):
    """A row of the table, in the order of its columns.

    device: the card's or processor's name; backend: as one asks for it, "native:chunks"; ms: median
    milliseconds; versions: of torch and CUDA, and the number of CPU threads.
    """

    op: str
    direction: str
    card: str
    device: str
    dtype: str
    batch: int
    time: int
    heads: int
    size: int
    backend: str
    ms: float
    versions: str

    def workload(self) -> Workload:
        """Returns the machine and shape that were measured, without the backend."""
        pairs = self.batch * self.heads
        return Workload(self.op, self.direction, self.card, self.dtype, pairs, self.time, self.size)


@lru_cache(maxsize=4096)
def ranking(wanted: Workload) -> tuple[str, ...]:
    """Returns the backends that the project's table compares, fastest first; see `rank`."""
    return rank(_table(FILE), wanted)


def rank(rows: Iterable[Measurement], wanted: Workload) -> tuple[str, ...]:
    """Returns the backends measured at the nearest shape, fastest first; () if none was compared.

    Only rows of the same operator, direction, card, dtype and head size count, and only shapes at
    which two backends or more were measured. Near means a small ratio of lengths and of pairs. Of
    two measurements of the same thing the later one counts.
    """
    compared: dict[Workload, dict[str, float]] = {}
    for row in rows:
        found = row.workload()
        if found._replace(pairs=wanted.pairs, time=wanted.time) == wanted:
            compared.setdefault(found, {})[row.backend] = row.ms
    shapes = [shape for shape, speeds in compared.items() if len(speeds) > 1]
    if not shapes:
        return ()
    # of two shapes at the same distance the smaller one, whatever the order of the rows
    nearest = min(shapes, key=lambda shape: (_distance(shape, wanted), shape.time, shape.pairs))
    speeds = compared[nearest]
    return tuple(sorted(speeds, key=lambda backend: (speeds[backend], backend)))


@cache
def card_of(device: torch.device) -> str:
    """Returns the class of machines that share measurements: "cpu", "sm_90" for a CUDA card."""
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def read(file: Path) -> tuple[Measurement, ...]:
    """Reads the rows of `file`, in order; lines that begin with # are remarks."""
    lines = [line for line in _lines(file) if line.strip() and not line.startswith("#")]
    return tuple(
        Measurement(**{name: _NUMBERS.get(name, str)(text) for name, text in row.items()})
        for row in csv.DictReader(lines)
    )


def record(file: Path, rows: Sequence[Measurement]) -> None:
    """Adds `rows` to `file`, in place of earlier ones of the same thing; keeps its remarks."""
    remarks = [line for line in _lines(file) if line.startswith("#")] if file.exists() else []
    kept = {_key(row): row for row in (*(read(file) if file.exists() else ()), *rows)}
    with file.open("w", encoding="utf-8", newline="") as out:
        out.writelines(f"{line}\n" for line in remarks)
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(Measurement._fields)
        writer.writerows(kept[key] for key in sorted(kept))


def _key(row: Measurement) -> tuple[str | int, ...]:
    return (*row.workload(), row.batch, row.device, row.backend)


def _distance(shape: Workload, wanted: Workload) -> float:
    ratios = (shape.time / wanted.time, shape.pairs / wanted.pairs)
    return sum(abs(math.log2(ratio)) for ratio in ratios)


@cache
def _table(file: Path) -> tuple[Measurement, ...]:
    return read(file)


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()
