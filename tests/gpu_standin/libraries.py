"""Compiles the stand-in: libraries that take the place of CUDA's runtime, cuBLAS, NCCL and driver.

They need a CUDA build of torch with the packages of NVIDIA it brings, for their headers, and a C++
compiler. They lie in the project's cache of kernels, under a name with a hash of their source.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import torch

from rwkv_train.compiler import cache_folder, find_cpp_path

SOURCES = Path(__file__).parent / "native"
SITE = Path(torch.__file__).parents[1]
FLAGS = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared")
# CUDA's names, as far as they stand for a function of one of the replaced libraries.
REPLACED = re.compile(r"(?:(?:__)?cuda|cublas|nccl)[A-Z]\w+")
# The driver's library is opened by torch's own; what it links to must be there.
DRIVER = re.compile(r"cu(?!File)[A-Z]\w+")
CUDA_NOT_SUPPORTED = 801


def reason_against() -> str | None:
    """Returns why the stand-in cannot be used with this torch; None when it can."""
    if torch.version.cuda is None:
        return "this torch is a CPU build; ./run-tests.sh --gpu-standin sets up a CUDA build"
    if not _include_folders():
        return f"no headers of CUDA and NCCL below {SITE / 'nvidia'}"
    return None


def built() -> Path:
    """Returns the folder with the libraries, compiled if need be."""
    digest = hashlib.sha256(f"{torch.__version__}{FLAGS}{Path(__file__).read_text()}".encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    folder = cache_folder() / f"gpu-standin-{digest.hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    work = folder.with_suffix(".work")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    parts = sorted(set(SOURCES.glob("*.cpp")) - {SOURCES / "driver.cpp"})
    library, driver = work / "libstandin.so", work / "libcuda.so.1"
    _compile(library, *map(str, parts))
    _compile(work / "libmissing.so", _stubs(work, "missing", REPLACED, library))
    own = ["-Wl,-soname,libcuda.so.1", str(SOURCES / "driver.cpp")]
    _compile(driver, *own)
    _compile(driver, *own, _stubs(work, "driver", DRIVER, driver))
    work.rename(folder)
    return folder


def environment() -> dict[str, str]:
    """Returns the variables under which a process takes the stand-in for a card."""
    folder = built()
    return {
        "LD_PRELOAD": f"{folder / 'libstandin.so'}:{folder / 'libmissing.so'}",
        "LD_LIBRARY_PATH": str(folder),
        # Fresh memory is zero, and so is what kernels that do nothing have written.
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
    }


def _include_folders() -> list[Path]:
    found = [
        sorted((SITE / "nvidia").glob(f"*/include/{header}"))
        for header in ("cuda_runtime_api.h", "cublas_v2.h", "nccl.h")
    ]
    return [paths[0].parent for paths in found] if all(found) else []


def _compile(library: Path, *arguments: str) -> None:
    includes = [word for folder in _include_folders() for word in ("-isystem", str(folder))]
    command = [find_cpp_path(), *FLAGS, *includes, *arguments, "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


def _names(library: Path, kind: str) -> set[str]:
    """Returns the names of the functions that a library defines, or uses without defining."""
    done = subprocess.run(
        ["nm", "-D", f"--{kind}-only", str(library)], capture_output=True, text=True, check=True
    )
    return {line.split()[-1].partition("@")[0] for line in done.stdout.splitlines()}


def _stubs(folder: Path, name: str, pattern: re.Pattern[str], library: Path) -> str:
    """Writes a source with a function for every name that torch uses and `library` lacks.

    Returns its path. A call leaves a line in the log and fails, so nothing is missing silently.
    """
    used = {
        symbol
        for library in sorted((SITE / "torch" / "lib").glob("*.so"))
        for symbol in _names(library, "undefined")
        if pattern.fullmatch(symbol)
    }
    lines = ['extern "C" void standin_missing(const char*);']
    lines += [
        f'extern "C" __attribute__((visibility("default"))) int {symbol}()'
        f' {{ standin_missing("{symbol}"); return {CUDA_NOT_SUPPORTED}; }}'
        for symbol in sorted(used - _names(library, "defined"))
    ]
    path = folder / f"{name}_stubs.cpp"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)
