"""nvcc, where there is one, compiles every kernel without a warning, a spill or a stack frame."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from rwkv_train.errors import BackendError
from rwkv_train.ops.native.build import Target, target_of
from rwkv_train.ops.native.cuda_toolkit import CudaToolkit, find_toolkit
from tests.cuda.conftest import ALL_INTERFACES
from tests.cuda.host_kernels import COMPILER, cuda_source, source_hash

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
pytestmark = pytest.mark.slow
TORCH_HEADERS = Path(torch.__file__).parent / "include"
OPS = (*ALL_INTERFACES, "adamw")
REPORT = "registers.txt"


def cuda_target(op: str) -> Target:
    """Returns the CUDA library that holds the operator."""
    return target_of(op, "cuda")


class KernelUse(NamedTuple):
    """What ptxas says of one kernel on one architecture, in its own units."""

    name: str
    architecture: str
    registers: int
    stack_bytes: int
    spill_bytes: int


def toolkit_or_skip() -> CudaToolkit:
    """Returns nvcc and what belongs to it, as the program itself finds them; skips without one."""
    try:
        return find_toolkit(torch.version.cuda or "13.0")
    except BackendError as error:
        pytest.skip(f"needs nvcc, the CUDA compiler: {error}")


def compiled(op: str, folder: Path) -> str:
    """Compiles the operator and returns what nvcc and ptxas say; remembered in `folder`."""
    nvcc = toolkit_or_skip().nvcc
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True)
    source = cuda_source(op)
    log = folder / f"{op}-nvcc-{source_hash([source], version.stdout, *NVCC_FLAGS)}.txt"
    if not log.exists():
        output = folder / f"{op}.fatbin"
        command = [nvcc, *NVCC_FLAGS, str(source), "-o", str(output)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        output.unlink()
        log.write_text(done.stdout + done.stderr, encoding="utf-8")
    return log.read_text(encoding="utf-8")


def kernels_of(log: str) -> list[KernelUse]:
    """Returns every kernel that ptxas reports on."""
    found = []
    for part in log.split("Compiling entry function '")[1:]:
        name, architecture = re.match(r"(\w+)' for 'sm_(\w+)'", part).groups()
        stack, stores, loads = (
            int(re.search(rf"(\d+) bytes {what}", part)[1])
            for what in ("stack frame", "spill stores", "spill loads")
        )
        registers = int(re.search(r"Used (\d+) registers", part)[1])
        found.append(KernelUse(name, architecture, registers, stack, stores + loads))
    return found


def readable(mangled: str) -> str:
    """Returns a kernel's name and the numbers among its template arguments."""
    name = re.search(r"rwkv\d+(\w+?_kernel)", mangled)[1]
    numbers = re.findall(r"L(?:i|b|NS_5DTypeE)(\d+)E", mangled)
    return f"{name}<{', '.join(numbers)}>"


@pytest.mark.parametrize("op", OPS)
def test_every_kernel_keeps_its_values_in_registers(op, build_folder):
    kernels = kernels_of(compiled(op, build_folder))
    assert {kernel.architecture for kernel in kernels} == set(ARCHITECTURES)
    assert len(kernels) >= 2 * len(ARCHITECTURES)
    wasteful = [kernel for kernel in kernels if kernel.stack_bytes or kernel.spill_bytes]
    assert wasteful == []


def test_the_register_counts_are_written_down(build_folder):
    lines = []
    for op in OPS:
        table: dict[str, dict[str, int]] = {}
        for kernel in kernels_of(compiled(op, build_folder)):
            table.setdefault(readable(kernel.name), {})[kernel.architecture] = kernel.registers
        lines += [
            f"{op}  {name:44s}" + "".join(f"  sm_{a} {uses[a]:3d}" for a in ARCHITECTURES)
            for name, uses in sorted(table.items())
        ]
    (build_folder / REPORT).write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert any("backward_kernel" in line for line in lines)


@pytest.mark.parametrize("library", sorted({cuda_target(op).name for op in OPS}))
def test_the_bindings_to_torch_compile(library, build_folder, tmp_path):
    """Checks types and names only; a torch built for CPUs has the headers but not the library."""
    toolkit = toolkit_or_skip()
    if not (TORCH_HEADERS / "c10" / "cuda" / "CUDAGuard.h").exists():
        pytest.skip("this torch comes without the headers of its CUDA half")
    # A family's are one translation unit, as in the library.
    bindings = next(target.bindings() for target in map(cuda_target, OPS) if target.name == library)
    done = build_folder / f"{library}-bindings-{source_hash(bindings, torch.__version__)}.txt"
    if done.exists():
        return
    source = tmp_path / "bindings.cpp"
    source.write_text("".join(f'#include "{file}"\n' for file in bindings), encoding="utf-8")
    # The one header that a build for CPUs leaves out.
    generated = tmp_path / "c10" / "cuda" / "impl" / "cuda_cmake_macros.h"
    generated.parent.mkdir(parents=True)
    generated.write_text("#define C10_CUDA_BUILD_SHARED_LIBS\n", encoding="utf-8")
    includes = [arg for f in (TORCH_HEADERS, tmp_path) for arg in ("-isystem", str(f))]
    includes += toolkit.include_flags
    command = [COMPILER, "-std=c++20", "-fsyntax-only", "-Wall", "-Werror", *includes, str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stderr}"
    done.touch()
