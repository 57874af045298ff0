"""RWKV-7's fused operators on a CUDA device, compared with the reference in fp64."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.errors import BackendError
from rwkv_train.ops.native.custom_ops import CUDA_DTYPES
from tests.cuda.gpu_calls import fused_on_device
from tests.ops.fused_cases import (
    OPERATORS,
    FusedCase,
    check_fused,
    compare_fused,
    make_fused_case,
    run,
)

pytestmark = [pytest.mark.gpu, pytest.mark.parametrize("op", OPERATORS)]


@pytest.mark.parametrize("dtype", CUDA_DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    ((1, 1, 1, 32), (2, 15, 1, 64), (3, 65, 3, 64), (2, 500, 12, 64), (1, 257, 3, 128)),
    ids=str,
)
def test_it_equals_the_reference_at_any_size(op, shape, dtype):
    check_fused(fused_on_device(make_fused_case(op, shape)), dtype)


def test_a_result_that_nothing_uses_counts_as_zero(op):
    case = fused_on_device(make_fused_case(op, (2, 67, 2, 64)))
    for name in OPERATORS[op].results:
        check_fused(case.without(name), torch.float32)


def test_two_runs_give_the_same_bits(op):
    case = fused_on_device(make_fused_case(op, (8, 500, 12, 64)))
    first, second = (run(case, "native", torch.bfloat16) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_strided_and_unaligned_inputs_are_served(op):
    case = fused_on_device(make_fused_case(op, (2, 40, 2, 64)))
    moved = {}
    for name, x in case.inputs.items():
        # Every second element of a buffer that begins in the middle of 16 bytes.
        buffer = torch.zeros(2 * x.numel() + 3, dtype=x.dtype, device=x.device)
        moved[name] = buffer[3:][: 2 * x.numel()].view(*x.shape, 2)[..., 0]
        moved[name].copy_(x)
    expected = run(case, "native", torch.float32)
    found = run(FusedCase(op, moved, case.gradients), "native", torch.float32)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_fp64_is_refused_by_name_and_served_by_auto(op):
    case = fused_on_device(make_fused_case(op, (1, 20, 1, 64)))
    with pytest.raises(BackendError, match=r"not torch\.float64"):
        run(case, "native")
    compare_fused(run(case, "auto"), run(case, "reference"))


def test_torch_accepts_the_registration(op):
    case = fused_on_device(make_fused_case(op, (2, 35, 2, 64)))
    run(case, "native", torch.float32)  # loads and registers
    inputs = [x.float() for x in case.inputs.values()]
    if op == "keys":
        inputs = [x if x.dim() > 1 else x.view(2, 64) for x in inputs]
    torch.library.opcheck(getattr(torch.ops.rwkv, f"{op}_forward"), inputs)
    gradients = [g.float() for g in case.gradients.values() if g is not None]
    torch.library.opcheck(getattr(torch.ops.rwkv, f"{op}_backward"), [*gradients, *inputs])
