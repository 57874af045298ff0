"""The norm and shift on a CUDA device, compared with the definition in fp64."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.errors import BackendError
from rwkv_train.ops.native.custom_ops import CUDA_DTYPES
from tests.cuda.gpu_calls import norm_shift_on_device as on_device
from tests.helpers import allowed_error, assert_close
from tests.ops.norm_shift_cases import NormCase, fused, make_norm_case, rounded, run_norm

pytestmark = pytest.mark.gpu


def check(case: NormCase, dtype: torch.dtype, to: torch.dtype | None = None) -> None:
    """Fails unless the native backend is as exact as fp32 sums, rounded once, can be."""
    case = rounded(case, dtype, to)
    found = {name: x.cpu() for name, x in run_norm(on_device(case), "native", dtype, to).items()}
    expected = run_norm(case, "plain", stored=found["stream"])
    for name, value in found.items():
        assert_close(name, value, expected[name], allowed_error(expected[name], value.dtype))


@pytest.mark.parametrize("dtype", CUDA_DTYPES, ids=str)
@pytest.mark.parametrize("time", (1, 16, 63, 65, 200))
def test_it_equals_the_definition_at_any_length(dtype, time):
    check(make_norm_case(2, time, 96, 6, seed=time), dtype)


@pytest.mark.parametrize("width", (3, 33, 260, 768, 2048, 4096))
@pytest.mark.parametrize("branch", ("out", "gate"))
def test_it_equals_the_definition_at_any_width(width, branch):
    check(make_norm_case(1, 40, width, 2, branch=branch), torch.float32, torch.bfloat16)


@pytest.mark.parametrize("count", (0, 1, 8))
def test_every_option_is_served(count):
    check(make_norm_case(2, 70, 64, count, branch="", last=False, reset=False), torch.float32)
    check(make_norm_case(2, 70, 64, count, branch="gate"), torch.bfloat16)


def test_tokens_are_mixed_again():
    check(make_norm_case(2, 70, 64, 1, moved=True), torch.float32)


def test_two_runs_give_the_same_bits_and_compiling_changes_none():
    case = on_device(rounded(make_norm_case(4, 300, 768, 6), torch.float32))
    first, second = (run_norm(case, "native", torch.float32) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    given = {name: x.float() for name, x in case.inputs.items()}
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    found = compiled(given, case.reset, torch.float32, "native")
    assert all(torch.equal(x, first[name]) for name, x in found.items())


def test_rows_that_no_block_of_threads_holds_are_refused_by_name_and_served_by_auto():
    case = on_device(rounded(make_norm_case(1, 3, 4104, 1), torch.float32))
    with pytest.raises(BackendError, match="widths up to 4096"):
        run_norm(case, "native", torch.float32)
    assert run_norm(case, "auto", torch.float32)["y0"].isfinite().all()
