"""Finds the compilers and flags that build the native operators; knows nothing of the operators.

Whatever is missing is a BackendError whose text names the missing thing and the remedy.
"""

from __future__ import annotations

import platform
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from rwkv_train.compiler import find_cpp_path, version_text
from rwkv_train.errors import BackendError

USUAL_NVCC = Path("/usr/local/cuda/bin/nvcc")

_TORCH = Path(torch.__file__).parent


class Compiler(NamedTuple):
    """A compiler's path, the text that tells its version, and the flags of our sources."""

    path: str
    version: str
    compile_flags: tuple[str, ...]
    link_flags: tuple[str, ...] = ()


def find_ninja() -> str:
    """Returns the path of ninja: on the PATH, or next to this Python, where pip puts it."""
    installed = Path(sys.executable).parent / "ninja"
    path = shutil.which("ninja") or (str(installed) if installed.exists() else None)
    if path is None:
        raise BackendError("ninja, which runs the compiler, is missing; run `pip install ninja`")
    return path


def find_cpp() -> Compiler:
    """Returns the C++ compiler with flags for sources that use torch, and for this processor."""
    path = find_cpp_path()
    return Compiler(path, version_text(path), _cpp_flags(), _cpp_link_flags())


def find_nvcc(capability: tuple[int, int]) -> Compiler:
    """Returns nvcc with the flags for a card of this compute capability.

    Raises BackendError unless its version fits torch's.
    """
    needed = torch.version.cuda
    if needed is None:
        raise BackendError("this torch was built without CUDA; install a CUDA build of torch")
    path = shutil.which("nvcc") or (str(USUAL_NVCC) if USUAL_NVCC.exists() else None)
    if path is None:
        raise BackendError(
            f"the CUDA compiler nvcc is missing; install the CUDA toolkit {needed} and put its "
            f"bin folder on the PATH"
        )
    text = version_text(path)
    found = re.search(r"release (\d+)\.(\d+)", text)
    if found is None or found[1] != needed.split(".")[0]:
        got = f"CUDA {found[1]}.{found[2]}" if found else "an unknown version of CUDA"
        raise BackendError(
            f"{path} is for {got} while torch was built for CUDA {needed}; put the nvcc of a "
            f"CUDA {needed} toolkit first on the PATH"
        )
    return Compiler(path, text, _nvcc_flags(capability))


def cuda_link_flags(nvcc: Compiler) -> tuple[str, ...]:
    """Returns flags that link a library with torch's CUDA half and the toolkit's runtime."""
    toolkit = Path(nvcc.path).resolve().parent.parent
    folders = [folder for folder in (toolkit / "lib64", toolkit / "lib") if folder.is_dir()]
    return (*(f"-L{folder}" for folder in folders), "-lcudart", "-lc10_cuda", "-ltorch_cuda")


def cuda_include_flags(nvcc: Compiler) -> tuple[str, ...]:
    """Returns flags with which the C++ compiler finds the toolkit's headers."""
    return ("-isystem", str(Path(nvcc.path).resolve().parent.parent / "include"))


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


def _nvcc_flags(capability: tuple[int, int]) -> tuple[str, ...]:
    # On Hopper the "a" variant is needed for wgmma and the bulk copy engine.
    arch = f"{capability[0]}{capability[1]}" + ("a" if capability == (9, 0) else "")
    return (
        "-std=c++20",
        "-O3",
        f"-gencode=arch=compute_{arch},code=sm_{arch}",
        "--expt-relaxed-constexpr",
        "-Xcompiler=-fPIC",
    )


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
