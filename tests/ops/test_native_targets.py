"""The CPU kernels built for processors other than this one: plain x86-64, AVX2, AVX-512, Arm."""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from rwkv_train.ops.native import build, toolchain
from rwkv_train.ops.precision import compute_dtype
from tests.ops.native_cases import OPS, WIDE, Case, make_case
from tests.ops.parity import compare_results, expected_results, rounded

SOURCES = [
    Path(__file__).with_name("native_program.cpp"),
    *(build.SOURCES / op / f"{op}_cpu.cpp" for op in OPS),
]
FLAGS = ("-std=c++20", "-O2", "-fno-math-errno", "-ffp-contract=fast", "-Wall", "-Werror")
# As cuda/common/params/dtypes.h numbers them.
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
# Inputs whose gradient the kernels leave per batch row.
PER_BATCH_ROW = {"wkv4": "wu", "wkv5": "wu", "wkv6": ("u", "base"), "wkv7": ("base",)}


class Target(NamedTuple):
    """A compiler, the flags for a processor, what runs its programs here, and what they need.

    needs: a word of /proc/cpuinfo's flags, or "".
    """

    compiler: str
    flags: tuple[str, ...]
    runner: tuple[str, ...] = ()
    needs: str = ""


TARGETS = {
    "x86-64": Target("g++", ("-march=x86-64",), needs="sse2"),
    "avx2": Target("g++", ("-march=x86-64-v3",), needs="avx2"),
    "avx512": Target("g++", ("-march=x86-64-v4",), needs="avx512vl"),
    # static: no libraries of that processor are asked for
    "aarch64": Target("aarch64-linux-gnu-g++", ("-static",), ("qemu-aarch64-static",)),
}

Program = Callable[..., bytes]


@pytest.fixture(scope="module", params=TARGETS)
def program(request, pytestconfig) -> Program:
    """Runs the target's program; built once per version of its sources."""
    target = TARGETS[request.param]
    for tool in (target.compiler, *target.runner):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    if target.needs and target.needs not in toolchain.machine_flags().split():
        pytest.skip(f"needs a processor with {target.needs}, and this one is {platform.machine()}")
    told = repr((target, FLAGS)).encode()
    told += b"".join(file.read_bytes() for file in sorted(build.with_includes(SOURCES)))
    folder = Path(pytestconfig.cache.mkdir("native_programs"))
    path = folder / f"{request.param}-{hashlib.sha256(told).hexdigest()[:16]}"
    if not path.exists():
        work = path.with_suffix(".work")
        command = [target.compiler, *FLAGS, *target.flags, f"-I{build.SOURCES}", "-o", str(work)]
        done = subprocess.run(
            [*command, *map(str, SOURCES)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        work.replace(path)

    def run(*words: str, given: bytes) -> bytes:
        command = [*target.runner, str(path), *words]
        done = subprocess.run(command, input=given, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    return run


def results(
    program: Program, case: Case, sizes: tuple[int, ...], dtype: torch.dtype
) -> dict[str, Tensor]:
    """What `run` of native_cases gives, computed by the program."""
    wide = compute_dtype(dtype)
    inputs = {name: x.to(wide if name in WIDE else dtype) for name, x in case.inputs.items()}
    gstate = case.gstate[0]
    if case.op == "wkv4":
        state = torch.stack([inputs.pop(name) for name in case.state_names], 1)
        inputs["state"] = state
        # the row of pp is not read
        gstate = torch.stack([*case.gstate, torch.zeros_like(gstate)], 1)
    given = [*inputs.values(), case.reset, case.gy.to(dtype), gstate.to(wide)]
    words = (case.op, *map(str, (*sizes, DTYPES[dtype])))
    memory = bytearray(program(*words, given=b"".join(map(raw, given))))
    found: dict[str, Tensor] = {}
    for name, like in {"y": case.gy.to(dtype), "final": inputs["state"], **inputs}.items():
        by_row = name in PER_BATCH_ROW[case.op]
        shape = (sizes[0], *like.shape) if by_row else like.shape
        size = torch.Size(shape).numel() * like.element_size()
        value = torch.frombuffer(memory[:size], dtype=like.dtype).view(shape)
        del memory[:size]
        found[name if name in ("y", "final") else f"g{name}"] = value.sum(0) if by_row else value
    assert not memory
    return named_states(case, found)


def raw(x: Tensor) -> bytes:
    """The tensor's memory."""
    return x.contiguous().view(torch.uint8).numpy().tobytes()


def named_states(case: Case, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """`found` with the parts of states under their own names."""
    final, gstate = found.pop("final"), found.pop("gstate")
    parts = (final, gstate) if case.op == "wkv4" else (final.unsqueeze(1), gstate.unsqueeze(1))
    for prefix, stacked in zip(("final ", "g"), parts):
        for name, part in zip(case.state_names, stacked.unbind(1)):
            found[prefix + name] = part
    return found


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 40, 3, 33), (1, 65, 1, 64)], ids=str)
def test_it_agrees_with_the_reference(program, op, sizes):
    case = make_case(op, *sizes, reset=True)
    for dtype in DTYPES:
        exact = rounded(case, dtype)
        found = results(program, exact, sizes, dtype)
        compare_results(exact, expected_results(exact), found, f"the program in {dtype}")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("w", [-1000.0, 4.0, 1000.0])
def test_extreme_decays_come_out_right(program, op, w):
    case = make_case(op, 1, 40, 1, 32, reset=True)
    case = rounded(case.with_inputs(w=torch.full_like(case.inputs["w"], w)), torch.float32)
    found = results(program, case, (1, 40, 1, 32), torch.float32)
    compare_results(case, expected_results(case), found, "the program")
