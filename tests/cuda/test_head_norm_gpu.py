"""The gated head norm on a CUDA device, compared with fp64."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.errors import BackendError
from rwkv_train.ops.native.custom_ops import CUDA_DTYPES, CUDA_HEAD_SIZES
from tests.cuda.gpu_calls import head_norm_on_device
from tests.cuda.problems import assert_results_match
from tests.ops.head_norm_cases import EPS, make_head_norm_case, run_head_norm

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", CUDA_DTYPES, ids=str)
@pytest.mark.parametrize("size", CUDA_HEAD_SIZES)
def test_they_equal_the_definition_at_every_head_size(size, dtype):
    for batch, time, heads in ((1, 1, 1), (2, 65, 3), (3, 500, 12)):
        for silu in (False, True):
            case = make_head_norm_case(batch, time, heads, size, silu=silu)
            norm = head_norm_on_device(case).rounded(dtype)
            found = run_head_norm(norm, "native", dtype)
            assert_results_match(found, run_head_norm(norm, "definition"))


def test_two_runs_give_the_same_bits():
    norm = head_norm_on_device(make_head_norm_case(8, 500, 12, 64))
    first, second = (run_head_norm(norm, "native", torch.bfloat16) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_fp64_and_other_head_sizes_are_refused_by_name_and_served_by_auto():
    calls = ((64, torch.float64, r"not torch\.float64"), (40, torch.float32, "not 40"))
    for size, dtype, message in calls:
        case = head_norm_on_device(make_head_norm_case(1, 20, 2, size))
        with pytest.raises(BackendError, match=message):
            run_head_norm(case, "native", dtype)
        found, expected = (run_head_norm(case, name, dtype) for name in ("auto", "reference"))
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_torch_accepts_the_registration():
    case = head_norm_on_device(make_head_norm_case(2, 35, 2, 32))
    run_head_norm(case, "native", torch.float32)  # loads and registers
    plain = [x.float() for x in case.inputs.values()]
    wanted = [x.clone().requires_grad_() for x in plain]
    torch.library.opcheck(torch.ops.rwkv.head_norm_gate_forward, (*wanted, EPS, False))
    arguments = (case.go.float(), *plain, EPS, False)
    torch.library.opcheck(torch.ops.rwkv.head_norm_gate_backward, arguments)
