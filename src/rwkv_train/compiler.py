"""Finds a compiler and a cache folder, and builds plain libraries, for every compiled part."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rwkv_train.errors import BackendError
from rwkv_train.files import partial_path

# For a question that is answered at once, but for a file server that sleeps.
QUESTION_S = 60.0
_PLAIN_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-Wall")


def find_cpp_path() -> str:
    """Returns the path of the C++ compiler; raises BackendError when there is none."""
    path = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if path is None:
        raise BackendError(
            "no C++ compiler (c++, g++, clang++) is on the PATH; install one, for example with "
            "`apt-get install g++`"
        )
    return path


def find_ninja() -> str:
    """Returns the path of ninja: on the PATH, or next to this Python, where pip puts it."""
    installed = Path(sys.executable).parent / "ninja"
    path = shutil.which("ninja") or (str(installed) if installed.exists() else None)
    if path is None:
        raise BackendError("ninja, which runs the compiler, is missing; run `pip install ninja`")
    return path


def run_compiler(
    command: list[str], limit_s: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a compiler or its like to its end; raises BackendError when it takes longer than that.

    What it prints may hold names of files, which are bytes of any kind.
    """
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired:
        raise BackendError(
            f"{command[0]} does not answer within {limit_s:.0f} s; reinstall it"
        ) from None


def version_text(path: str) -> str:
    """Returns a compiler's own version text; raises BackendError when it does not start."""
    done = run_compiler([path, "--version"], QUESTION_S)
    if done.returncode != 0:
        raise BackendError(f"{path} --version failed: {done.stderr.strip()}; reinstall it")
    return done.stdout


def cache_folder() -> Path:
    """Returns a folder only this user can write: ~/.cache/rwkv_kernels, else one under /tmp."""
    try:
        folder = Path.home() / ".cache" / "rwkv_kernels"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):
        pass
    try:
        folder = Path(tempfile.gettempdir()) / f"rwkv_kernels_{os.getuid()}"
        # Under /tmp anybody may have made the folder first, and would choose the code that we load.
        folder.mkdir(mode=0o700, exist_ok=True)
        owner = folder.lstat().st_uid
    except OSError as error:
        raise BackendError(
            f"there is no place for compiled kernels: neither ~/.cache nor the folder for "
            f"temporary files can be written ({error}); make one of them writable"
        ) from error
    if owner != os.getuid() or folder.is_symlink():
        raise BackendError(f"{folder} belongs to another user; delete it, or make ~ writable")
    return folder


def plain_library(source: Path, cache: Path | None = None) -> Path:
    """Returns the path of a library built from one C++ file that needs the standard library only.

    It lies in the cache under a name that holds a hash of source, flags, compiler and machine, and
    is compiled (a second or two) when it is not there.  Raises BackendError with the reason when
    that is impossible.  Several processes may ask at once: whoever finishes last replaces equals.
    """
    if os.name != "posix":
        raise BackendError(f"{source.name} is built on Linux and macOS only")
    try:
        folder = cache or cache_folder()
        compiler = find_cpp_path()
        shared = "-shared" if sys.platform.startswith("linux") else "-dynamiclib"
        command = [compiler, *_PLAIN_FLAGS, shared, str(source)]
        # All that the machine code depends on; a cache folder may be shared by several machines.
        told = [*command[1:-1], version_text(compiler), *platform.libc_ver(), platform.machine()]
        key = hashlib.sha256("\n".join(told).encode() + source.read_bytes()).hexdigest()[:16]
        library = folder / f"{source.stem}-{key}.so"
        if not library.exists():
            _compile(command, library)
    except OSError as error:
        raise BackendError(f"{source.name} cannot be compiled: {error}") from error
    return library


def _compile(command: list[str], library: Path) -> None:
    partial = partial_path(library)
    try:
        done = run_compiler([*command, "-o", str(partial)])
        if done.returncode != 0:
            reason = next((line for line in done.stderr.splitlines() if line.strip()), "no reason")
            raise BackendError(f"{command[-1]} does not compile: {reason}")
        # Equal sources give equal libraries: whoever renames last does no harm.
        partial.replace(library)
    finally:
        partial.unlink(missing_ok=True)
