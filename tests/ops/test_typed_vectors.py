"""Whole vectors are converted as single elements are, whatever processor the code is built for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from rwkv_train.ops.native import build, toolchain
from tests.ops.test_native_targets import FLAGS, TARGETS, Target

WITH_BF16 = Target("g++", ("-march=x86-64-v4", "-mavx512bf16"), needs="avx512_bf16")
PROCESSORS = {**TARGETS, "avx512_bf16": WITH_BF16}
SOURCE = Path(__file__).with_name("typed_vectors_program.cpp")


@pytest.mark.parametrize("processor", PROCESSORS)
def test_vectors_of_16_bit_numbers_are_converted_as_elements_are(processor, tmp_path):
    target = PROCESSORS[processor]
    for tool in (target.compiler, *target.runner):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    if target.needs and target.needs not in toolchain.machine_flags().split():
        pytest.skip(f"needs a processor with {target.needs}")
    program = tmp_path / "program"
    command = [target.compiler, *FLAGS, *target.flags, f"-I{build.SOURCES}", "-o", str(program)]
    built = subprocess.run([*command, str(SOURCE)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    done = subprocess.run(
        [*target.runner, str(program)], capture_output=True, text=True, check=True
    )
    # wrong ones of bf16 and of fp16
    assert done.stdout.splitlines() == ["widened 0 0", "narrowed 0 0", "parts 0 0"]
