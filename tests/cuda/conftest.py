"""Fixtures of the CUDA tests: kernels compiled for the CPU, once per version of their source."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rwkv_train.compiler import cache_folder
from tests.cuda.embedding_norm_problems import INTERFACE as EMBEDDING_NORM_INTERFACE
from tests.cuda.fused_problems import FUSED_INTERFACES
from tests.cuda.head_loss_problems import INTERFACE as HEAD_LOSS_INTERFACE
from tests.cuda.head_norm_problems import INTERFACE as HEAD_NORM_INTERFACE
from tests.cuda.host_kernels import COMPILER, HostKernels
from tests.cuda.norm_shift_problems import NORM_INTERFACE
from tests.cuda.piece_problems import PIECE_INTERFACES
from tests.cuda.pointwise_problems import POINTWISE_INTERFACES
from tests.cuda.problems import INTERFACES

# Of everything that has CUDA kernels.
ALL_INTERFACES = {
    **INTERFACES,
    NORM_INTERFACE.op: NORM_INTERFACE,
    HEAD_NORM_INTERFACE.op: HEAD_NORM_INTERFACE,
    HEAD_LOSS_INTERFACE.op: HEAD_LOSS_INTERFACE,
    EMBEDDING_NORM_INTERFACE.op: EMBEDDING_NORM_INTERFACE,
    **POINTWISE_INTERFACES,
    **FUSED_INTERFACES,
    **PIECE_INTERFACES,
}


@pytest.fixture(scope="session")
def build_folder() -> Path:
    """Gives the folder where compiled kernels stay from run to run; deleting it costs a minute."""
    if shutil.which(COMPILER) is None:
        pytest.skip(f"needs {COMPILER} to compile the kernels for the CPU")
    folder = cache_folder() / "tests"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def host_kernels(build_folder: Path) -> Callable[[str], HostKernels]:
    """Gives an operator's kernels, which run on the CPU, set up as on a large card."""
    loaded: dict[str, HostKernels | str] = {}

    def kernels_of(op: str) -> HostKernels:
        if op not in loaded:
            try:
                loaded[op] = HostKernels(ALL_INTERFACES[op], build_folder)
            except AssertionError as error:
                loaded[op] = str(error)
        kernels = loaded[op]
        if isinstance(kernels, str):
            pytest.fail(f"{op} does not compile for the CPU: {kernels}")
        kernels.set_up()
        return kernels

    return kernels_of
