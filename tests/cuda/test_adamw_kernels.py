"""The source of AdamW's CUDA kernels, executed on the CPU, beside the native CPU kernels."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from ctypes import c_double, c_int, c_int64, c_void_p
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rwkv_train.ops.adamw import AdamwOptions, AdamwTensors, adamw_update, gradient_norm
from tests.cuda.host_kernels import (
    DTYPE_CODES,
    HOST_FLAGS,
    Guarded,
    compile_for_host,
    cuda_source,
    source_hash,
)

CHUNK = 65536
SHAPES = ((1,), (9,), (4103,), (CHUNK,), (CHUNK + 5,))
BETA1, BETA2, EPS, LIMIT = 0.9, 0.99, 1e-18, 1.0
RATE, DECAY, STEP = 1e-3, 0.1, 3


class TensorRow(ctypes.Structure):
    """AdamwTensor of cuda/adamw/adamw.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("gradient", "parameter", "exp_avg", "exp_avg_sq")),
        ("weight", c_void_p),
        ("count", c_int64),
        ("first_chunk", c_int64),
        *((name, c_double) for name in ("kept", "step_size", "root")),
        *((name, c_int) for name in ("gradient_dtype", "dtype", "weight_dtype", "aligned")),
    )


class Table(ctypes.Structure):
    """AdamwTable."""

    _fields_ = (("tensors", c_void_p), ("count", c_int64), ("chunks", c_int64))


class Norm(ctypes.Structure):
    """AdamwNorm."""

    _fields_ = (("table", Table), ("squares", c_void_p), ("norm", c_void_p))


class Update(ctypes.Structure):
    """AdamwUpdate."""

    _fields_ = (
        ("table", Table),
        *((name, c_double) for name in ("beta1", "beta2", "eps")),
        ("norm", c_void_p),
        ("limit", c_double),
    )


@pytest.fixture(scope="module")
def library(build_folder: Path) -> ctypes.CDLL:
    source = cuda_source("adamw")
    path = build_folder / f"adamw-{source_hash([source], *HOST_FLAGS)}.so"
    if not path.exists():
        compile_for_host(source, path)
    loaded = ctypes.CDLL(str(path))
    loaded.rwkv_shim_take_error.restype = ctypes.c_char_p
    return loaded


def run(library: ctypes.CDLL, name: str, params: ctypes.Structure) -> None:
    code = getattr(library, f"rwkv_adamw_{name}_cuda")(ctypes.byref(params), None)
    message = library.rwkv_shim_take_error().decode()
    assert code == 0 and not message, message or code


def table_of(tensors: AdamwTensors, step: int) -> tuple[Table, ctypes.Array[TensorRow]]:
    """Returns the table of a call, and the memory in which it lies."""
    rows = (TensorRow * len(tensors.gradients))()
    chunks = 0
    for i, row in enumerate(rows):
        of_row = {
            "gradient": tensors.gradients[i],
            "parameter": tensors.parameters[i],
            "exp_avg": tensors.exp_avgs[i],
            "exp_avg_sq": tensors.exp_avg_sqs[i],
        }
        if tensors.weights:
            of_row["weight"] = tensors.weights[i]
            row.weight_dtype = DTYPE_CODES[tensors.weights[i].dtype]
        for field, tensor in of_row.items():
            setattr(row, field, tensor.data_ptr())
        row.aligned = all(tensor.data_ptr() % 16 == 0 for tensor in of_row.values())
        row.gradient_dtype = DTYPE_CODES[tensors.gradients[i].dtype]
        row.count, row.first_chunk = tensors.gradients[i].numel(), chunks
        row.kept, row.step_size = 1 - RATE * DECAY, RATE / (1 - BETA1**step)
        row.root = math.sqrt(1 - BETA2**step)
        chunks += -(-row.count // CHUNK)
    return Table(ctypes.addressof(rows), len(rows), chunks), rows


def drawn(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(shape, generator=generator)).to(dtype) for shape in shapes]


def guarded(tensors: Sequence[Tensor], offset: int) -> tuple[list[Guarded], list[Tensor]]:
    """Returns copies between guards, so many elements behind a multiple of 64 bytes."""
    buffers = [Guarded((tensor.numel() + offset,), tensor.dtype) for tensor in tensors]
    copies = [buffer.tensor[offset:].view(t.shape) for buffer, t in zip(buffers, tensors)]
    for copy, tensor in zip(copies, tensors):
        copy.copy_(tensor)
    return buffers, copies


@pytest.mark.parametrize("offset", (0, 3), ids=("aligned", "unaligned"))
@pytest.mark.parametrize(
    "of_gradients, of_weights",
    [
        (torch.float32, None),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.float32, torch.bfloat16),
    ],
    ids=str,
)
def test_a_step_equals_the_one_on_the_cpu(library, of_gradients, of_weights, offset):
    parameters, gradients = drawn(SHAPES, torch.float32, 0), drawn(SHAPES, of_gradients, 1)
    moments = drawn(SHAPES, torch.float32, 2), [m.square() for m in drawn(SHAPES, torch.float32, 3)]
    weights = [torch.empty_like(p, dtype=of_weights) for p in parameters if of_weights is not None]
    kinds = [parameters, gradients, *moments, weights]
    guards, copies = zip(*(guarded(kind, offset) for kind in kinds))
    given = AdamwTensors(*copies[:4], [], copies[4])
    table, rows = table_of(given, STEP)
    assert {bool(row.aligned) for row in rows} == {offset == 0}
    sums, norm = Guarded((table.chunks,), torch.float64), Guarded((1,), torch.float64)
    places = sums.tensor.data_ptr(), norm.tensor.data_ptr()
    run(library, "norm", Norm(table, *places))
    run(library, "update", Update(table, BETA1, BETA2, EPS, places[1], LIMIT))
    for buffer in (sums, norm, *(buffer for of_kind in guards for buffer in of_kind)):
        buffer.check("a tensor")

    steps = [torch.tensor(STEP - 1.0) for _ in SHAPES]
    expected = AdamwTensors(*kinds[:4], steps, weights)
    exact = gradient_norm(gradients)
    assert norm.tensor.item() == pytest.approx(exact.item(), rel=1e-6)
    assert norm.tensor.item() > LIMIT
    numbers = [RATE] * len(SHAPES), [DECAY] * len(SHAPES), BETA1, BETA2, EPS
    adamw_update(expected, AdamwOptions(*numbers, exact, LIMIT))
    for kind in ("parameters", "exp_avgs", "exp_avg_sqs"):
        for found, other in zip(getattr(given, kind), getattr(expected, kind)):
            torch.testing.assert_close(found, other, rtol=2e-6, atol=1e-7)
    for parameter, weight in zip(given.parameters, given.weights):
        assert torch.equal(weight, parameter.to(weight.dtype))


def test_the_norm_has_the_same_bits_whichever_thread_runs_first(library):
    gradients = drawn(SHAPES, torch.float32, 1)
    table, _rows = table_of(AdamwTensors(gradients, gradients, gradients, gradients, []), 1)
    found = []
    for descending in (0, 1):
        library.rwkv_shim_set_up(descending, 132, 227 * 1024)
        sums, norm = torch.zeros(table.chunks, dtype=torch.float64), torch.zeros(1).double()
        run(library, "norm", Norm(table, sums.data_ptr(), norm.data_ptr()))
        found.append(norm.item())
    library.rwkv_shim_set_up(0, 132, 227 * 1024)
    assert found[0] == found[1]


@pytest.mark.parametrize("value", (math.nan, math.inf))
def test_a_bad_gradient_reaches_the_norm_and_a_bad_norm_every_weight(library, value):
    tensors = AdamwTensors(*(drawn(SHAPES[:2], torch.float32, i) for i in range(4)), [])
    tensors.gradients[1][8] = value
    table, _rows = table_of(tensors, 1)
    norm, sums = torch.zeros(1, dtype=torch.float64), torch.zeros(table.chunks).double()
    run(library, "norm", Norm(table, sums.data_ptr(), norm.data_ptr()))
    assert not norm.isfinite().any()
    norm.fill_(math.nan)
    run(library, "update", Update(table, BETA1, BETA2, EPS, norm.data_ptr(), LIMIT))
    assert all(parameter.isnan().all() for parameter in tensors.parameters)
