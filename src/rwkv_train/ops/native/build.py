"""Compiles the native operators on first use, once per machine, and loads them.

The sources are `cuda/common` and `cuda/<op>`: `<op>_ops.cpp` (schema and host code) and
`<op>_cpu.cpp` make the CPU library; `<op>_cuda*.cpp` and `<op>_cuda*.cu` the CUDA library, which
needs the CPU library for the schema. A library lies in the user's cache under a name that holds a
hash of everything it depends on: sources, flags, torch, compiler and processor. Nobody deletes old
ones; the whole cache folder may be deleted at any time.

One process builds and the others wait, by a file lock that the system releases when its owner dies.
A compile that failed is not tried again by the processes of the same run.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

import torch

from rwkv_train.compiler import cache_folder, run_compiler
from rwkv_train.errors import BackendError
from rwkv_train.ops.native import toolchain
from rwkv_train.ops.native.cuda_toolkit import host_compiler_fault


def _sources_folder() -> Path:
    """Returns the folder of the native sources, of an installed package or of a checkout."""
    package = Path(__file__).parents[2]
    installed = package / "cuda"
    return installed if installed.is_dir() else package.parents[1] / "cuda"


SOURCES = _sources_folder()
# Long enough for every process of a run to meet the same failure, short enough for a user who has
# repaired its cause.
FAILURE_LIFETIME_S = 300.0
ERROR_LINES_SHOWN = 3
WORK_PREFIX = "work-"

_outcomes: dict[tuple[str, str], str | None] = {}


class Target(NamedTuple):
    """An operator for "cpu" or "cuda"; tests point `sources` and `cache` elsewhere."""

    op: str
    device: str = "cpu"
    sources: Path = SOURCES
    cache: Path | None = None

    def files(self) -> list[Path]:
        """Returns the translation units."""
        folder = self.sources / self.op
        if self.device == "cpu":
            return [folder / f"{self.op}_ops.cpp", folder / f"{self.op}_cpu.cpp"]
        return sorted(folder.glob("*_cuda*.cpp")) + sorted(folder.glob("*_cuda*.cu"))


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
        _outcomes[op, device] = _load(op, device)
    return _outcomes[op, device]


def has_sources(op: str, device: str) -> bool:
    """Tells whether this copy of the program holds the operator's sources for "cpu" or "cuda"."""
    files = Target(op, device).files()
    return bool(files) and all(file.exists() for file in files)


def built_library(target: Target) -> Path:
    """Returns the path of the target's library, compiled if it is not in the cache.

    Raises BackendError naming the missing tool, or the compiler's first errors and the log.
    """
    key = _source_hash(target)
    cache = target.cache or cache_folder()
    try:
        plan = _make_plan(target)
    except BackendError:
        # A library built when there was a compiler still serves.
        for library in sorted(cache.glob(f"{_label(target)}-{key}-*/{_name(target)}")):
            return library
        raise
    folder = cache / f"{_label(target)}-{key}-{_plan_hash(plan)}"
    library = folder / _name(target)
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder / "lock", target):
            # Another process may have built it while this one waited.
            if not library.exists():
                _compile(target, plan, folder)
    return library


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
        library = built_library(Target(op, device))
        # torch leaves the function without types.
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except BackendError as error:
        return str(error)
    except OSError as error:
        return f"its library cannot be used ({error}); delete {cache_folder()} and try again"
    return None


def _name(target: Target) -> str:
    return f"{target.op}_{target.device}.so"


def _make_plan(target: Target) -> BuildPlan:
    ninja = toolchain.find_ninja()
    if target.device == "cpu":
        return BuildPlan(ninja, toolchain.find_cpp())
    return BuildPlan(ninja, *toolchain.cuda_compilers(_capabilities()))


def _capabilities() -> list[tuple[int, int]]:
    """Returns the compute capabilities of the cards that are there, each once."""
    cards = range(torch.cuda.device_count())
    return sorted({torch.cuda.get_device_capability(card) for card in cards})


def _label(target: Target) -> str:
    """Returns the operator with what its library is for, as "wkv7-cuda-sm_80-sm_90"."""
    names = [f"sm_{major}{minor}" for major, minor in _capabilities()] * (target.device == "cuda")
    return "-".join([target.op, target.device, *names])


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


@contextmanager
def _lock(path: Path, target: Target) -> Iterator[None]:
    """Holds the build lock; prints whom it waits for, and who died while building."""
    # Absent on Windows, which `_load` has sorted out.
    import fcntl

    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"waiting for {_owner(file)}, which builds the {_title(target)}")
            fcntl.flock(file, fcntl.LOCK_EX)
        # The system released the lock, but only a living owner wipes its name.
        owner = _owner(file)
        if owner:
            _say(f"{owner} died while it built the {_title(target)}; its lock is removed")
        for left_over in path.parent.glob(f"{WORK_PREFIX}*"):
            shutil.rmtree(left_over, ignore_errors=True)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _owner(file: TextIO) -> str:
    file.seek(0)
    return file.read().strip()


def _compile(target: Target, plan: BuildPlan, folder: Path) -> None:
    log = folder / "build.log"
    if log.exists() and time.time() - log.stat().st_mtime < FAILURE_LIFETIME_S:
        raise BackendError(_failure(target, log))
    took = "about 20 s" if plan.nvcc is None else f"by {plan.nvcc.path}, about a minute"
    _say(f"building the {_title(target)}, {took}, once per machine")
    work = folder / f"{WORK_PREFIX}{os.getpid()}"
    work.mkdir()
    (work / "build.ninja").write_text(_ninja_file(target, plan), encoding="utf-8")
    done = run_compiler([plan.ninja, "-C", str(work)])
    if done.returncode != 0:
        log.write_text(done.stdout + done.stderr, encoding="utf-8")
        shutil.rmtree(work, ignore_errors=True)
        raise BackendError(_failure(target, log))
    # Renamed when it is complete: no process ever loads half a library.
    (work / _name(target)).replace(folder / _name(target))
    shutil.rmtree(work, ignore_errors=True)
    log.unlink(missing_ok=True)


def _failure(target: Target, log: Path) -> str:
    lines = log.read_text(encoding="utf-8").splitlines()
    errors = [line.strip() for line in lines if re.search(r"\berror\b", line, re.IGNORECASE)]
    fault = host_compiler_fault("\n".join(lines))
    shown = "\n  ".join([*([fault] if fault else []), *(errors or lines)[:ERROR_LINES_SHOWN]])
    return f"the {_title(target)} does not compile; the whole log is {log}:\n  {shown}"


def _ninja_file(target: Target, plan: BuildPlan) -> str:
    units = [(file, f"{file.name}.o") for file in target.files()]
    rules = [_rule("cpp", plan.cpp)]
    if plan.nvcc is not None:
        rules.append(_rule("cu", plan.nvcc))
    link = shlex.join([plan.cpp.path, "$in", *plan.cpp.link_flags, "-o", "$out"])
    rules.append(f"rule link\n  command = {_unquoted(link)}\n")
    builds = [f"build {out}: {file.suffix[1:]} {_path(file)}\n" for file, out in units]
    builds.append(f"build {_name(target)}: link {' '.join(out for _, out in units)}\n")
    return "".join(rules + builds)


def _rule(name: str, compiler: toolchain.Compiler) -> str:
    command = shlex.join([compiler.path, *compiler.compile_flags, "-c", "$in", "-o", "$out"])
    return f"rule {name}\n  command = {_unquoted(command)}\n"


def _unquoted(command: str) -> str:
    """Removes the quotes that shlex puts around ninja's own variables."""
    return command.replace("'$in'", "$in").replace("'$out'", "$out")


def _path(path: Path) -> str:
    return re.sub(r"([$ :])", r"$\1", str(path))


def _title(target: Target) -> str:
    return f"{target.op} {'CPU' if target.device == 'cpu' else 'CUDA'} kernel"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
