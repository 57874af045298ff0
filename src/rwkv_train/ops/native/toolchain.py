"""Finds the compilers and flags that build the native operators; knows nothing of the operators.

Whatever is missing is a BackendError whose text names the missing thing and the remedy.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from rwkv_train.compiler import find_cpp_path, version_text
from rwkv_train.errors import BackendError
from rwkv_train.ops.native.cuda_toolkit import architecture_flags, find_toolkit

NVCC_FLAGS = ("-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Xcompiler=-fPIC")

_TORCH = Path(torch.__file__).parent


class Compiler(NamedTuple):
    """A compiler's path, the text that tells its version, and the flags of our sources."""

    path: str
    version: str
    compile_flags: tuple[str, ...]
    link_flags: tuple[str, ...] = ()


def find_cpp() -> Compiler:
    """Returns the C++ compiler with flags for sources that use torch, and for this processor."""
    path = find_cpp_path()
    return Compiler(path, version_text(path), _cpp_flags(), _cpp_link_flags())


def cuda_compilers(capabilities: Sequence[tuple[int, int]]) -> tuple[Compiler, Compiler]:
    """Returns the C++ compiler and nvcc with flags for cards of these compute capabilities.

    Raises BackendError when there is no nvcc for the CUDA that torch was built for.
    """
    needed = torch.version.cuda
    if needed is None:
        raise BackendError("this torch was built without CUDA; install a CUDA build of torch")
    cpp, toolkit = find_cpp(), find_toolkit(needed)
    flags = (*NVCC_FLAGS, *architecture_flags(toolkit.nvcc, capabilities))
    link_flags = (*cpp.link_flags, *toolkit.link_flags, "-lc10_cuda", "-ltorch_cuda")
    cpp = cpp._replace(
        compile_flags=cpp.compile_flags + toolkit.include_flags, link_flags=link_flags
    )
    return cpp, Compiler(toolkit.nvcc, toolkit.told, flags)


def machine_flags() -> str:
    """Returns the processor's abilities in words; libraries built for others may not run here."""
    for line in _text_of(Path("/proc/cpuinfo")).splitlines():
        if line.startswith(("flags", "Features")):
            return f"{platform.machine()} {line.partition(':')[2].strip()}"
    return f"{platform.machine()} {platform.processor()}"


def _cpp_flags() -> tuple[str, ...]:
    native = {"x86_64": "-march=native", "aarch64": "-mcpu=native", "arm64": "-mcpu=native"}
    return (
        "-std=c++20",
        "-O3",
        *((native[platform.machine()],) if platform.machine() in native else ()),
        # Not -ffast-math: NaN and infinity must come out as they should.
        "-fno-math-errno",
        "-ffp-contract=fast",
        "-fPIC",
        *(("-fopenmp",) if sys.platform.startswith("linux") else ()),
        "-Wall",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        "-isystem",
        str(_TORCH / "include"),
    )


def _cpp_link_flags() -> tuple[str, ...]:
    """Returns libraries to link with; torch's own OpenMP, so that its thread count is used."""
    bundled = sorted(
        path
        for folder in (_TORCH / "lib", _TORCH.parent / "torch.libs")
        for path in folder.glob("libgomp*.so*")
    )
    openmp = str(bundled[0]) if bundled else "-fopenmp"
    shared = "-shared" if sys.platform.startswith("linux") else "-dynamiclib"
    linux = (openmp,) if sys.platform.startswith("linux") else ()
    return (shared, f"-L{_TORCH / 'lib'}", "-ltorch_cpu", "-lc10", *linux)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
