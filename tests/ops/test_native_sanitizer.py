"""The CPU kernels under AddressSanitizer, built for the narrowest vectors and so least padding."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from rwkv_train.ops.native import build, toolchain
from tests.ops.native_cases import require_native


@pytest.mark.slow
def test_no_kernel_touches_memory_that_is_not_its_own(tmp_path):
    require_native("wkv6")
    if platform.machine() != "x86_64":
        pytest.skip("the flags are those of x86-64")
    program = tmp_path / "sanitizer"
    operators = (*build.FAMILIES["layer"], *build.FAMILIES["pieces"])
    operators += ("wkv4", "wkv5", "wkv6", "wkv7")
    sources = [build.SOURCES / op / f"{op}_cpu.cpp" for op in operators]
    built = subprocess.run(
        [
            toolchain.find_cpp().path,
            "-std=c++20",
            # No access is optimised away, and it compiles in half the time.
            "-O0",
            "-march=x86-64",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
            "-I",
            str(build.SOURCES),
            "-o",
            str(program),
            str(Path(__file__).parent / "native_sanitizer.cpp"),
            *map(str, sources),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if "cannot find -lasan" in built.stderr:
        pytest.skip("the compiler has no AddressSanitizer")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert done.stdout == "clean\n", done.stderr
