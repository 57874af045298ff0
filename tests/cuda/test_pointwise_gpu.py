"""The pointwise operators on a CUDA device, compared with their formulas in fp64."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.errors import BackendError
from rwkv_train.ops.native.custom_ops import CUDA_DTYPES
from tests.cuda.gpu_calls import DEVICE
from tests.cuda.problems import assert_results_match
from tests.ops.pointwise_cases import POINTWISE, make_inputs, run

pytestmark = [pytest.mark.gpu, pytest.mark.parametrize("op", POINTWISE)]


@pytest.mark.parametrize("dtype", CUDA_DTYPES, ids=str)
@pytest.mark.parametrize("shape", ((1, 1, 1), (2, 63, 7), (3, 65, 40), (2, 500, 3072)), ids=str)
def test_it_equals_the_formula(op, dtype, shape):
    given = {name: x.to(DEVICE, dtype) for name, x in make_inputs(op, *shape).items()}
    exact = run(op, {name: x.double() for name, x in given.items()}, "formula")
    assert_results_match(run(op, given, "native"), exact)


def test_strided_and_unaligned_inputs_are_served(op):
    given = {name: x.to(DEVICE).bfloat16() for name, x in make_inputs(op, 2, 40, 64).items()}
    moved = {}
    for name, x in given.items():
        # Every second element of a buffer that begins in the middle of 16 bytes.
        buffer = torch.zeros(2 * x.numel() + 3, dtype=x.dtype, device=x.device)
        moved[name] = buffer[3:][: 2 * x.numel()].view(*x.shape, 2)[..., 0]
        moved[name].copy_(x)
    expected, found = run(op, given, "native"), run(op, moved, "native")
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_fp64_is_refused_by_name_and_served_by_auto(op):
    given = {name: x.to(DEVICE) for name, x in make_inputs(op, 1, 20, 16).items()}
    with pytest.raises(BackendError, match=r"not torch\.float64"):
        run(op, given, "native")
    found, expected = run(op, given, "auto"), run(op, given, "reference")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_torch_accepts_the_registration(op):
    given = {name: x.to(DEVICE).float() for name, x in make_inputs(op, 2, 35, 24).items()}
    run(op, given, "native")  # loads and registers
    inputs = [given[name] for name in POINTWISE[op].inputs]
    wanted = [x.clone().requires_grad_() for x in inputs]
    torch.library.opcheck(getattr(torch.ops.rwkv, f"{op}_forward"), wanted)
    torch.library.opcheck(getattr(torch.ops.rwkv, f"{op}_backward"), [given["grad"], *inputs])


@pytest.mark.slow
def test_tensors_of_more_than_two_to_the_31_elements_are_indexed_right(op):
    if torch.cuda.get_device_properties(0).total_memory < 60 << 30:
        pytest.skip("needs 60 GiB of memory on the device")
    names = (*POINTWISE[op].inputs, "grad")
    one = {name: torch.randn(1, 8192, 4096, device=DEVICE).bfloat16() for name in names}
    many = {name: x.expand(65, -1, -1).contiguous() for name, x in one.items()}
    found, expected = run(op, many, "native"), run(op, one, "native")
    for name, value in found.items():
        assert torch.equal(value[-1:], expected[name]) and torch.equal(value[:1], expected[name])
