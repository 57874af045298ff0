"""registers.csv: what nvcc made of the kernels' sources, by the hash of all that it was given.

Compiling them takes minutes, and the same compiler makes the same of the same sources. Others are
compiled by the tests, and so is one operator always. To write the file anew:

    PYTHONPATH=src python -m tests.cuda.register_table
"""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from rwkv_train.ops.native.build import cache_folder
from rwkv_train.ops.native.cuda_toolkit import find_toolkit
from tests.cuda.conftest import ALL_INTERFACES
from tests.cuda.host_kernels import cuda_source, source_hash

TABLE = Path(__file__).with_name("registers.csv")
ARCHITECTURES = ("80", "90")
NVCC_FLAGS = (
    "-std=c++20",
    "-O3",
    "--expt-relaxed-constexpr",
    "--Werror",
    "all-warnings",
    "-Xptxas",
    "-v,-warn-spills",
    "--threads",
    "2",
    "-fatbin",
    *(f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES),
)
OPS = (*ALL_INTERFACES, "adamw")
COLUMNS = ("operator", "sources", "kernel", "architecture", "registers", "stack", "spilled")


class KernelUse(NamedTuple):
    """What ptxas says of one kernel on one architecture; stack and spilled in bytes."""

    kernel: str
    architecture: str
    registers: int
    stack: int
    spilled: int


def find_nvcc() -> str:
    """Returns the nvcc that the program itself finds. Raises BackendError."""
    return str(find_toolkit(torch.version.cuda or "13.0").nvcc)


def given_hash(op: str, nvcc: str) -> str:
    """Returns the hash of an operator's sources, of nvcc's version and of the flags."""
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True)
    return source_hash([cuda_source(op)], version.stdout, *NVCC_FLAGS)


def recorded_uses(op: str, given: str) -> list[KernelUse]:
    """Returns the table's rows of an operator; [] where they are of something else."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = [r for r in csv.reader(file) if r[0] == op and r[1] == given]
    return [KernelUse(r[2], r[3], *map(int, r[4:])) for r in rows]


def compiled_uses(op: str, nvcc: str, folder: Path) -> list[KernelUse]:
    """Compiles the operator; returns what ptxas reports, which is remembered in `folder`.

    Raises RuntimeError with what nvcc says.
    """
    log = folder / f"{op}-nvcc-{given_hash(op, nvcc)}.txt"
    if not log.exists():
        output = folder / f"{op}.fatbin"
        command = [nvcc, *NVCC_FLAGS, str(cuda_source(op)), "-o", str(output)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        output.unlink()
        log.write_text(done.stdout + done.stderr, encoding="utf-8")
    return sorted(_uses(log.read_text(encoding="utf-8")))


def _uses(log: str) -> Iterable[KernelUse]:
    for part in log.split("Compiling entry function '")[1:]:
        name, architecture = re.match(r"(\w+)' for 'sm_(\w+)'", part).groups()
        stack, stores, loads = (
            int(re.search(rf"(\d+) bytes {what}", part)[1])
            for what in ("stack frame", "spill stores", "spill loads")
        )
        registers = int(re.search(r"Used (\d+) registers", part)[1])
        yield KernelUse(_readable(name), architecture, registers, stack, stores + loads)


def _readable(mangled: str) -> str:
    """Returns a kernel's name and the numbers among its template arguments."""
    name = re.search(r"rwkv\d+(\w+?_kernel)", mangled)[1]
    numbers = re.findall(r"L(?:i|b|NS_5DTypeE)(\d+)E", mangled)
    return f"{name}<{' '.join(numbers)}>"


def main() -> int:
    """Writes the table; returns 0."""
    nvcc, folder = find_nvcc(), cache_folder() / "tests"
    folder.mkdir(exist_ok=True)
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for op in OPS:
            given = given_hash(op, nvcc)
            writer.writerows((op, given, *use) for use in compiled_uses(op, nvcc, folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
