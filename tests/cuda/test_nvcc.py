"""nvcc, where there is one, compiles every kernel without a warning, a spill or a stack frame."""

from __future__ import annotations

import subprocess
import warnings
from pathlib import Path

import pytest
import torch

from rwkv_train.errors import BackendError
from rwkv_train.ops.native.build import Target, target_of
from rwkv_train.ops.native.cuda_toolkit import CudaToolkit, find_toolkit
from tests.cuda.host_kernels import COMPILER, source_hash
from tests.cuda.register_table import ARCHITECTURES, OPS, compiled_uses, given_hash, recorded_uses

pytestmark = pytest.mark.slow
TORCH_HEADERS = Path(torch.__file__).parent / "include"
# Compiled whatever the table says: small, and it shows that the table is what nvcc says.
ALWAYS = "sigmoid_gate"
RENEW = "PYTHONPATH=src python -m tests.cuda.register_table"


def cuda_target(op: str) -> Target:
    """Returns the CUDA library that holds the operator."""
    return target_of(op, "cuda")


def toolkit_or_skip() -> CudaToolkit:
    """Returns nvcc and what belongs to it, as the program itself finds them; skips without one."""
    try:
        return find_toolkit(torch.version.cuda or "13.0")
    except BackendError as error:
        pytest.skip(f"needs nvcc, the CUDA compiler: {error}")


@pytest.mark.parametrize("op", OPS)
def test_every_kernel_keeps_its_values_in_registers(op, build_folder):
    nvcc = str(toolkit_or_skip().nvcc)
    kernels = recorded_uses(op, given_hash(op, nvcc))
    if not kernels:
        warnings.warn(
            f"{op} is compiled: registers.csv is of something else ({RENEW})", stacklevel=1
        )
    if not kernels or op == ALWAYS:
        recorded, kernels = kernels, compiled_uses(op, nvcc, build_folder)
        assert recorded in ([], kernels)
    assert {kernel.architecture for kernel in kernels} == set(ARCHITECTURES)
    assert len(kernels) >= 2 * len(ARCHITECTURES)
    assert [kernel for kernel in kernels if kernel.stack or kernel.spilled] == []


def test_changed_sources_are_not_found_in_the_table():
    assert recorded_uses("wkv7", "0123456789abcdef") == []


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
