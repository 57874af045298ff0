"""Compiles the native operators on first use, once per machine, and loads them.

The sources are `cuda/common` and `cuda/<op>`: `<op>_ops.cpp` (schema and host code) and
`<op>_cpu.cpp` make the CPU library; `<op>_cuda*.cpp` and `<op>_cuda*.cu` the CUDA library, which
needs the CPU library for the schema. The operators of a family share a library: torch's headers,
which take longer than all else, are then compiled once for all of them. A library lies in the
user's cache under a name that holds a hash of everything it depends on: sources, flags, torch,
compiler and processor. Nobody deletes old ones; the whole cache folder may be deleted at any time.

One process builds and the others wait, by a file lock that the system releases when its owner dies.
A compile that failed is not tried again by the processes of the same run.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import torch

from rwkv_train.compiler import cache_folder, find_ninja, run_compiler
from rwkv_train.errors import BackendError
from rwkv_train.ops.native import toolchain
from rwkv_train.ops.native.build_lock import WORK_PREFIX, held_lock, say
from rwkv_train.ops.native.cuda_toolkit import host_compiler_fault
from rwkv_train.ops.native.ninja_file import ninja_file


def _sources_folder() -> Path:
    """Returns the folder of the native sources, of an installed package or of a checkout."""
    package = Path(__file__).parents[2]
    installed = package / "cuda"
    return installed if installed.is_dir() else package.parents[1] / "cuda"


SOURCES = _sources_folder()
# Operators that are needed together, by the name of their library; "layer" has all that layers and
# steps of training have besides the recurrence. Their sources with torch in them become one
# translation unit, so names in these must be unique.
FAMILIES = {
    "layer": (
        *("adamw", "embedding_norm", "head_loss", "head_norm_gate", "keys", "norm_shift"),
        *("sigmoid_gate", "split_tanh", "squared_relu", "value_residual"),
    ),
    # What decoding alone calls; training does not wait for it.
    "decoding": ("token_step", "matvec"),
    # What context parallelism alone calls.
    "pieces": ("wkv4_piece", "wkv5_6_piece", "wkv7_piece"),
}
# Long enough for every process of a run to meet the same failure, short enough for a user who has
# repaired its cause.
FAILURE_LIFETIME_S = 300.0
ERROR_LINES_SHOWN = 3
LOG_NAME = "build.log"

_outcomes: dict[tuple[str, str], str | None] = {}


class Target(NamedTuple):
    """A library for "cpu" or "cuda"; tests point `sources` and `cache` elsewhere.

    name: of an operator, or of a family whose operators are `members`.
    """

    name: str
    device: str = "cpu"
    sources: Path = SOURCES
    cache: Path | None = None
    members: tuple[str, ...] = ()

    def operators(self) -> tuple[str, ...]:
        """Returns the operators that are in the library."""
        return self.members or (self.name,)

    def bindings(self) -> list[Path]:
        """Returns the sources with torch in them."""
        if self.device == "cpu":
            return [self.sources / op / f"{op}_ops.cpp" for op in self.operators()]
        return self._found("*_cuda*.cpp")

    def kernels(self) -> list[Path]:
        """Returns the sources without torch, each a translation unit."""
        if self.device == "cpu":
            return [self.sources / op / f"{op}_cpu.cpp" for op in self.operators()]
        return self._found("*_cuda*.cu")

    def files(self) -> list[Path]:
        """Returns all sources that no other one includes."""
        return self.bindings() + self.kernels()

    def title(self) -> str:
        """Returns the library in words."""
        kind = "CPU" if self.device == "cpu" else "CUDA"
        return f"{self.name} {kind} kernel{'s' * bool(self.members)}"

    def _found(self, pattern: str) -> list[Path]:
        return [
            file for op in self.operators() for file in sorted((self.sources / op).glob(pattern))
        ]


class BuildPlan(NamedTuple):
    """The tools that build a target: the compiler of C++ files and, for CUDA, that of .cu files."""

    ninja: str
    cpp: toolchain.Compiler
    nvcc: toolchain.Compiler | None = None


def load(op: str, device: str) -> str | None:
    """Returns why the operator's library for "cpu" or "cuda" cannot be loaded; None once it is.

    Compiles the library if need be. The answer is remembered for the life of the process.
    """
    if (op, device) not in _outcomes:
        outcome = _load(op, device)
        for member in target_of(op, device).operators():
            if member == op or has_sources(member, device):
                _outcomes[member, device] = outcome
    return _outcomes[op, device]


def target_of(op: str, device: str) -> Target:
    """Returns the library that holds an operator: its family's, or one of its own."""
    for family, members in FAMILIES.items():
        if op in members:
            return Target(family, device, members=members)
    return Target(op, device)


def has_sources(op: str, device: str) -> bool:
    """Tells whether this copy of the program holds the operator's sources for "cpu" or "cuda"."""
    files = Target(op, device).files()
    return bool(files) and all(file.exists() for file in files)


def built_library(target: Target, jobs: int | None = None) -> Path:
    """Returns the path of the target's library, compiled if it is not in the cache.

    jobs: how many compilers may run at once, of a build that somebody else has announced; None: as
    ninja thinks best. Raises BackendError naming the missing tool or source, or the compiler's
    first errors and the log.
    """
    library, plan = _find(target)
    if plan is not None and not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with held_lock(library.parent / "lock", target.title()):
            # Another process may have built it while this one waited.
            if not library.exists():
                _compile(target, plan, library, jobs)
    return library


def needs_building(target: Target) -> bool:
    """Tells whether `built_library` would compile: the library is missing and has not just failed.

    Raises BackendError when a tool or a source is missing.
    """
    library, _ = _find(target)
    return not library.exists() and not _failed_lately(library)


def _find(target: Target) -> tuple[Path, BuildPlan | None]:
    """Returns where the library lies once it is built, and with what; None: it is built."""
    for file in target.files():
        if not file.exists():
            raise BackendError(
                f"the {target.title()} cannot be built without {file}, which this copy of the "
                f"program lacks; install the program anew"
            )
    key = _source_hash(target)
    cache = target.cache or cache_folder()
    try:
        plan = _make_plan(target)
    except BackendError:
        # A library built when there was a compiler still serves.
        for library in sorted(cache.glob(f"{_label(target)}-{key}-*/{_name(target)}")):
            return library, None
        raise
    return cache / f"{_label(target)}-{key}-{_plan_hash(plan)}" / _name(target), plan


def _load(op: str, device: str) -> str | None:
    if os.name != "posix":
        return "it is built on Linux and macOS only"
    if device == "cuda":
        reason = load(op, "cpu")
        if reason is not None:
            return reason
    if not has_sources(op, device):
        return f"this copy of the program has no sources of {op} for {device}"
    try:
        library = built_library(target_of(op, device))
        # torch leaves the function without types.
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except BackendError as error:
        return str(error)
    except OSError as error:
        return f"its library cannot be used ({error}); delete {cache_folder()} and try again"
    return None


def _name(target: Target) -> str:
    return f"{target.name}_{target.device}.so"


def _make_plan(target: Target) -> BuildPlan:
    ninja = find_ninja()
    if target.device == "cpu":
        return BuildPlan(ninja, toolchain.find_cpp())
    return BuildPlan(ninja, *toolchain.cuda_compilers(_capabilities()))


def _capabilities() -> list[tuple[int, int]]:
    """Returns the compute capabilities of the cards that are there, each once."""
    cards = range(torch.cuda.device_count())
    return sorted({torch.cuda.get_device_capability(card) for card in cards})


def _label(target: Target) -> str:
    """Returns the library's name and what it is for, as "wkv7-cuda-sm_80-sm_90"."""
    names = [f"sm_{major}{minor}" for major, minor in _capabilities()] * (target.device == "cuda")
    return "-".join([target.name, target.device, *names])


def _source_hash(target: Target) -> str:
    """Returns a hash of what the library is made from and for, apart from the compilers."""
    digest = hashlib.sha256(f"{torch.__version__}\n{toolchain.machine_flags()}\n".encode())
    for file in sorted(with_includes(target.files())):
        digest.update(f"{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def with_includes(files: list[Path]) -> set[Path]:
    """Returns `files` and all that they include by a quoted path, directly or not."""
    found: set[Path] = set()
    left = [file.resolve() for file in files]
    while left:
        file = left.pop()
        if file not in found and file.is_file():
            found.add(file)
            names = re.findall(r'^\s*#\s*include\s+"([^"]+)"', file.read_text("utf-8"), re.M)
            left.extend((file.parent / name).resolve() for name in names)
    return found


def _plan_hash(plan: BuildPlan) -> str:
    return hashlib.sha256(repr((plan.cpp, plan.nvcc)).encode()).hexdigest()[:8]


def _compile(target: Target, plan: BuildPlan, library: Path, jobs: int | None) -> None:
    folder, log = library.parent, library.parent / LOG_NAME
    if _failed_lately(library):
        raise BackendError(_failure(target, log))
    if jobs is None:
        took = "about half a minute" if target.members else "about 20 s"
        took = took if plan.nvcc is None else f"by {plan.nvcc.path}, about a minute"
        say(f"building the {target.title()}, {took}, once per machine")
    work = folder / f"{WORK_PREFIX}{os.getpid()}"
    work.mkdir()
    units = [_joined(target, work), *target.kernels()]
    recipe = ninja_file(library.name, units, plan.cpp, plan.nvcc)
    (work / "build.ninja").write_text(recipe, encoding="utf-8")
    limit = [] if jobs is None else ["-j", str(jobs)]
    done = run_compiler([plan.ninja, *limit, "-C", str(work)])
    if done.returncode != 0:
        log.write_text(done.stdout + done.stderr, encoding="utf-8")
        shutil.rmtree(work, ignore_errors=True)
        raise BackendError(_failure(target, log))
    # Renamed when it is complete: no process ever loads half a library.
    (work / library.name).replace(library)
    shutil.rmtree(work, ignore_errors=True)
    log.unlink(missing_ok=True)


def _failed_lately(library: Path) -> bool:
    log = library.parent / LOG_NAME
    return log.exists() and time.time() - log.stat().st_mtime < FAILURE_LIFETIME_S


def _joined(target: Target, folder: Path) -> Path:
    """Writes into `folder` a source that includes all with torch in them; returns its path."""
    joined = folder / f"{target.name}_{target.device}_bindings.cpp"
    lines = [f'#include "{file}"\n' for file in target.bindings()]
    joined.write_text("".join(lines), encoding="utf-8")
    return joined


def _failure(target: Target, log: Path) -> str:
    lines = log.read_text(encoding="utf-8").splitlines()
    errors = [line.strip() for line in lines if re.search(r"\berror\b", line, re.IGNORECASE)]
    fault = host_compiler_fault("\n".join(lines))
    shown = "\n  ".join([*([fault] if fault else []), *(errors or lines)[:ERROR_LINES_SHOWN]])
    return f"the {target.title()} cannot be compiled; the whole log is {log}:\n  {shown}"
