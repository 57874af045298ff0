"""Builds the CUDA kernels of an operator for the CPU, through cuda/host_shim, and runs them.

A generated wrapper fills the kernels' parameters by field name, so that nothing here depends on the
order of the fields. Every buffer that a kernel writes starts as NaN and lies between guard bytes.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import struct
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rwkv_train.ops.native.build import with_includes
from tests.checkout import ROOT

SOURCES = ROOT / "cuda"
SHIM = SOURCES / "host_shim" / "shim.h"
COMPILER = "g++"
HOST_FLAGS = (
    "-std=c++20",
    "-O1",
    "-fPIC",
    "-shared",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
    "-x",
    "c++",
    "-include",
    str(SHIM),
)
DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
GUARD_BYTES = 256
GUARD = 0xA5
AUTO, FULL, WIDE, CHUNKS, SEGMENTS = range(5)
DEFAULT_OPTIONS = (AUTO, 64 << 20)


class Interface(NamedTuple):
    """The names by which an operator's launchers know their parameters.

    sizes: fields of numbers, integers and doubles; pointers: of the forward and of the backward
    parameters. with_options: whether the launchers take LaunchOptions and working memory.
    launchers: what stands before `forward_cuda`, `forward_floats` and so on in their names.
    steps: other words for these two, of an operator without a backward pass.
    backward_sizes: further numbers, which only the backward parameters have.
    """

    op: str
    forward_struct: str
    backward_struct: str
    sizes: tuple[str, ...]
    forward: tuple[str, ...]
    backward: tuple[str, ...]
    with_options: bool = True
    launchers: str = ""
    steps: tuple[str, str] = ("forward", "backward")
    backward_sizes: tuple[str, ...] = ()


class KernelError(Exception):
    """A fault that the shim or a guard has found."""


class HostKernels:
    """The launchers of one operator, running on the CPU."""

    def __init__(self, interface: Interface, folder: Path) -> None:
        self.interface = interface
        self.last_floats = 0
        self._library = ctypes.CDLL(str(_built(interface, folder)))
        self._library.rwkv_shim_take_error.restype = ctypes.c_char_p
        self._library.forward_floats.restype = ctypes.c_int64
        self._library.backward_floats.restype = ctypes.c_int64

    def set_up(
        self,
        *,
        descending: bool = False,
        multiprocessors: int = 132,
        most_shared_bytes: int = 227 * 1024,
    ) -> None:
        """Sets the order in which warps and lanes run, and how large the card is."""
        self._library.rwkv_shim_set_up(int(descending), multiprocessors, most_shared_bytes)

    def forward(
        self, sizes: Sequence[float], tensors: Mapping[str, Tensor | None], *options: int
    ) -> None:
        """Runs the forward launcher; raises KernelError for a fault.

        sizes: in the order of the interface's; options: in the order of LaunchOptions. The floats
        of working memory that the launcher asked for stay in `last_floats`.
        """
        self._run("forward", self.interface.forward, sizes, tensors, options)

    def backward(
        self, sizes: Sequence[float], tensors: Mapping[str, Tensor | None], *options: int
    ) -> None:
        """Runs the backward launcher as `forward` does the forward one."""
        self._run("backward", self.interface.backward, sizes, tensors, options)

    def _run(
        self,
        which: str,
        names: Sequence[str],
        sizes: Sequence[float],
        tensors: Mapping[str, Tensor | None],
        options: Sequence[int],
    ) -> None:
        pointers = self._pointers(names, tensors)
        arguments = (_numbers(sizes), pointers, self._options(options))
        self.last_floats = getattr(self._library, f"{which}_floats")(*arguments)
        memory = Guarded((self.last_floats,), torch.float32)
        address = ctypes.c_void_p(memory.tensor.data_ptr())
        self._check(getattr(self._library, which)(*arguments, address))
        memory.check("the working memory")

    @staticmethod
    def _options(given: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
        return _numbers([*given, *DEFAULT_OPTIONS[len(given) :]])

    def _pointers(
        self, names: Sequence[str], tensors: Mapping[str, Tensor | None]
    ) -> ctypes.Array[ctypes.c_void_p]:
        assert set(names) == set(tensors), f"{sorted(tensors)} given, {sorted(names)} expected"
        found = [tensors[name] for name in names]
        assert all(t is None or t.is_contiguous() for t in found)
        addresses = [None if t is None else t.data_ptr() for t in found]
        return (ctypes.c_void_p * len(names))(*addresses)

    def _check(self, code: int) -> None:
        message = self._library.rwkv_shim_take_error().decode()
        if message or code != 0:
            raise KernelError(message or f"the launcher returned {code}")


def _numbers(values: Sequence[float]) -> ctypes.Array[ctypes.c_int64]:
    """Returns the values in 64 bits each, doubles by their bits."""
    packed = b"".join(struct.pack("=q" if isinstance(v, int) else "=d", v) for v in values)
    return (ctypes.c_int64 * len(values)).from_buffer_copy(packed)


class Guarded:
    """A tensor full of NaN (all bytes 0xFF) between guard bytes, which `check` compares."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        count = 1
        for size in shape:
            count *= size
        self._bytes = count * dtype.itemsize
        self._memory = torch.full((self._bytes + 2 * GUARD_BYTES + 64,), GUARD, dtype=torch.uint8)
        self._start = GUARD_BYTES + -(self._memory.data_ptr() + GUARD_BYTES) % 64
        inside = self._memory[self._start : self._start + self._bytes]
        inside.fill_(0xFF)
        self.tensor = inside.view(dtype).view(*shape)

    def check(self, name: str) -> None:
        """Raises KernelError when something was written before or behind the tensor."""
        before, behind = self._memory[: self._start], self._memory[self._start + self._bytes :]
        if not bool((before == GUARD).all()):
            raise KernelError(f"a kernel wrote before {name}")
        if not bool((behind == GUARD).all()):
            raise KernelError(f"a kernel wrote behind {name}")


def surrounded(x: Tensor) -> Tensor:
    """Returns a copy of x that starts at a multiple of 16 bytes and has NaN on both sides."""
    memory = torch.full((x.numel() + 2 * GUARD_BYTES,), float("nan"), dtype=x.dtype)
    inside = memory[GUARD_BYTES : GUARD_BYTES + x.numel()].view(x.shape)
    return inside.copy_(x)


def tensors_of(buffers: Mapping[str, Guarded]) -> dict[str, Tensor]:
    """Returns the tensors inside the buffers, by the same names."""
    return {name: buffer.tensor for name, buffer in buffers.items()}


def compile_for_host(source: Path, library: Path, *flags: str) -> None:
    """Compiles one C++ or CUDA file through the shim into a shared library; atomic."""
    work = library.with_suffix(f".{os.getpid()}")
    command = [COMPILER, *HOST_FLAGS, *flags, str(source), "-o", str(work)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    work.replace(library)


def source_hash(sources: Sequence[Path], *extra: str) -> str:
    """Returns a hash of `extra`, of `sources` and the shim, and of all that these include."""
    digest = hashlib.sha256("\n".join(extra).encode())
    for file in sorted(with_includes([*sources, SHIM])):
        digest.update(f"{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def cuda_source(op: str) -> Path:
    """Returns the operator's translation unit for nvcc."""
    return SOURCES / op / f"{op}_cuda.cu"


def _built(interface: Interface, folder: Path) -> Path:
    wrapper = _wrapper(interface)
    key = source_hash([cuda_source(interface.op)], wrapper, *HOST_FLAGS)
    library = folder / f"{interface.op}-{key}.so"
    if not library.exists():
        source = folder / f"{interface.op}.{os.getpid()}.cpp"
        source.write_text(wrapper, encoding="utf-8")
        compile_for_host(source, library)
        source.unlink()
    return library


def _wrapper(interface: Interface) -> str:
    op, launchers = interface.op, interface.launchers or f"rwkv_{interface.op}_"
    unused = "[[maybe_unused]]"
    arguments = (
        f"{unused} const int64_t* sizes, {unused} void* const* pointers, "
        f"{unused} const int64_t* options"
    )
    options, memory = ("chosen(options), ", "memory, ") if interface.with_options else ("", "")

    def functions(
        which: str, step: str, struct: str, names: Sequence[str], sizes: Sequence[str]
    ) -> str:
        fills = [
            f"  {take}(p.{field}, {given}[{i}]);"
            for fields, take, given in (
                (sizes, "take_number", "sizes"),
                (names, "take_pointer", "pointers"),
            )
            for i, field in enumerate(fields)
        ]
        params = f"{which}_params(sizes, pointers)"
        floats = f"{launchers}{step}_floats({params}, chosen(options))"
        signature = f"{which}_params(const int64_t* sizes, void* const* pointers)"
        return "\n".join(
            [
                f"static rwkv::{struct} {signature} {{",
                f"  rwkv::{struct} p{{}};",
                *fills,
                "  return p;",
                "}",
                f'extern "C" int64_t {which}_floats({arguments}) {{',
                f"  return {floats if interface.with_options else 0};",
                "}",
                f'extern "C" int {which}({arguments}, {unused} float* memory) {{',
                f"  return {launchers}{step}_cuda({params}, {options}{memory}nullptr);",
                "}",
            ]
        )

    sizes = interface.sizes
    forward = functions(
        "forward", interface.steps[0], interface.forward_struct, interface.forward, sizes
    )
    sizes = (*sizes, *interface.backward_sizes)
    backward = functions(
        "backward", interface.steps[1], interface.backward_struct, interface.backward, sizes
    )
    return f"""
#include "{cuda_source(op)}"
#include <type_traits>
template <class T> static void take_number(T& to, int64_t bits) {{
  if constexpr (std::is_same_v<T, double>) std::memcpy(&to, &bits, sizeof(to));
  else to = static_cast<T>(bits);
}}
template <class T> static void take_pointer(T& to, void* pointer) {{ to = (T)pointer; }}
{unused} static rwkv::LaunchOptions chosen(const int64_t* options) {{
  return {{options[0], options[1]}};
}}
{forward}
{backward}
"""
