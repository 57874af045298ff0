"""Checks of the programs that build kernels: C++ compiler, ninja, nvcc, and triton."""

from __future__ import annotations

import ctypes
import platform
import re
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from rwkv_train.compiler import QUESTION_S, find_cpp_path, find_ninja, run_compiler, version_text
from rwkv_train.doctor.findings import (
    Answers,
    fault,
    good,
    in_one_line,
    install_compiler,
    pip_install,
    skipped,
    warning,
)
from rwkv_train.doctor.package_imports import import_answers
from rwkv_train.doctor.python_packages import torch_build
from rwkv_train.errors import BackendError

# What the kernels need of a compiler: C++20, OpenMP, the standard library's headers.
_PROGRAM = """
#include <omp.h>
#include <cmath>
#include <concepts>
#include <vector>
template <std::floating_point T> T twice(T x) { return x + x; }
extern "C" double threads_times_two(int count) {
    std::vector<double> sums(count, 0.0);
    #pragma omp parallel for num_threads(count)
    for (int n = 0; n < count; ++n) sums[n] = twice(1.0);
    double sum = 0.0;
    for (double value : sums) sum += value;
    return sum;
}
"""
# Before it ninja read no escaped blanks as our files write them.
_OLDEST_NINJA = (1, 5)


def check_compiler(folder: Path) -> Answers:
    """Yields the C++ compiler, having built and called a library as the kernels are built."""
    try:
        path = find_cpp_path()
        version = in_one_line(version_text(path).splitlines()[0])
    except BackendError as error:
        told = str(error).partition("; install")[0]
        yield fault(f"{told}; without kernels a run is several times slower", install_compiler())
        return
    except (OSError, IndexError) as error:
        yield fault(f"the C++ compiler does not start: {error}", install_compiler())
        return
    yield f"compile with {path}"
    with tempfile.TemporaryDirectory(prefix="rwkv-doctor-") as place:
        source, library = Path(place, "probe.cpp"), Path(place, "probe.so")
        source.write_text(_PROGRAM, encoding="utf-8")
        done = run_compiler([path, *_flags(), str(source), "-o", str(library)], QUESTION_S)
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "error" in line.lower()]
            told = in_one_line((lines or done.stderr.splitlines() or ["no reason given"])[0])
            yield fault(
                f"{path} ({version}) does not compile C++20 with OpenMP: {told}", install_compiler()
            )
            return
        yield f"load what {path} has built"
        loaded = ctypes.CDLL(str(library))
        loaded.threads_times_two.restype = ctypes.c_double
        if loaded.threads_times_two(3) != 6.0:
            yield fault(f"{path} ({version}) builds code that computes wrongly", install_compiler())
            return
    yield good(f"{version} at {path}: C++20 and OpenMP work")


def check_ninja(folder: Path) -> Answers:
    """Yields ninja's version."""
    remedy = pip_install("ninja>=1.11", force=True)
    try:
        path = find_ninja()
    except BackendError as error:
        yield fault(str(error).partition(";")[0], pip_install("ninja>=1.11"))
        return
    try:
        done = run_compiler([path, "--version"], 10.0)
    except (BackendError, OSError) as error:
        yield fault(f"{path} does not start: {in_one_line(str(error))}", remedy)
        return
    said = in_one_line(done.stdout + done.stderr, 80)
    version = re.match(r"(\d+)\.(\d+)", said)
    if done.returncode != 0 or version is None:
        yield fault(f"{path} is no ninja: it says '{said}' (status {done.returncode})", remedy)
    elif (int(version[1]), int(version[2])) < _OLDEST_NINJA:
        yield fault(f"ninja {said} at {path} is too old", remedy)
    else:
        yield good(f"{said.partition('.git')[0]} at {path}")


def check_nvcc(folder: Path) -> Answers:
    """Yields the CUDA compiler that builds the kernels of the cards that torch can use."""
    import torch

    from rwkv_train.ops.native.cuda_toolkit import find_toolkit, remedy

    needed = torch.version.cuda
    if needed is None or not torch.cuda.is_available():
        yield skipped("torch uses no card here")
        return
    yield "ask nvcc"
    try:
        toolkit = find_toolkit(needed)
    except BackendError as error:
        # The last part of its line is the remedy, which follows anyway.
        yield fault(in_one_line(str(error).partition(f"; {remedy(needed)}")[0]), remedy(needed))
        return
    yield good(f"{toolkit.nvcc}, for CUDA {needed}")


def check_triton(folder: Path) -> Answers:
    """Yields whether --compile 1 finds what it needs on the cards that torch can use."""
    build = torch_build()
    if build is None or build.cuda is None:
        yield skipped("this torch is for CPUs")
        return
    if find_spec("triton") is None:
        yield warning("not installed; --compile 1 needs it on a GPU", pip_install("triton"))
        return
    yield from import_answers("triton", "triton")


def _flags() -> list[str]:
    native = {"x86_64": "-march=native", "aarch64": "-mcpu=native", "arm64": "-mcpu=native"}
    linux = sys.platform.startswith("linux")
    machine = native.get(platform.machine())
    return [
        *("-std=c++20", "-O1", "-fPIC", *((machine,) if machine else ())),
        *(("-fopenmp", "-shared") if linux else ("-dynamiclib",)),
    ]
