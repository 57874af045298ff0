"""Every backend against the fp64 reference over lengths, heads, sizes, values and float types."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers import TOLERANCE, assert_close
from tests.ops.native_cases import INPUTS, OPS, Case, make_case, require_native, run
from tests.ops.parity import check, compare, expected_results, rounded

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned_memory")

LENGTHS = (1, 2, 15, 16, 17, 63, 64, 65, 500)
# (B, T, H, N): one head of every size, and forty heads of every size and over every length.
SHAPES = (
    *((1, time, 1, size) for time in LENGTHS for size in (32, 64, 128)),
    *((4, time, 10, 8) for time in LENGTHS),
    *((4, 17, 10, size) for size in (32, 64, 128)),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

every_backend = pytest.mark.parametrize("backend", ["native", "chunked"])
every_op = pytest.mark.parametrize("op", OPS)


@pytest.fixture(autouse=True)
def compiled(request):
    """Skips `native` where there is no compiler."""
    if request.node.callspec.params.get("backend") == "native":
        require_native(request.node.callspec.params["op"])


@lru_cache(maxsize=2)
def of_shape(op: str, shape: tuple[int, int, int, int]) -> tuple[Case, dict[str, Tensor]]:
    """A case of this shape and its results, the same for all float types and backends.

    Numbers in bf16 of ordinary size are exact in fp16 and fp32.
    """
    case = make_case(op, *shape, seed=shape[1], reset=shape[1] % 2 == 1)
    case = rounded(case, torch.bfloat16)
    return case, expected_results(case)


@every_backend
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@every_op
def test_it_agrees_on_every_shape(op, backend, shape):
    case, expected = of_shape(op, shape)
    for dtype in DTYPES:
        compare(case, expected, backend, dtype)


# For wkv4 to 6 exp(-exp(w)) is then 1, one half, almost 0, and 0 with exp(w) finite and infinite;
# for wkv7 the decay is 1 or its floor. (At 4.4 results come near 1e-38, where kernels flush to 0.)
@pytest.mark.parametrize("w", [-1000.0, -40.0, -0.4, 4.0, 50.0, 1000.0])
@every_backend
@every_op
def test_it_agrees_for_extreme_decays(op, backend, w):
    case = make_case(op, 1, 70, 1, 32)
    case = case.with_inputs(w=torch.full_like(case.inputs["w"], w))
    for dtype in DTYPES:
        check(case, backend, dtype)


@every_backend
@every_op
def test_it_agrees_for_channels_that_forget_at_once_beside_others_that_never_forget(op, backend):
    case = make_case(op, 2, 70, 1, 32)
    choices = torch.tensor([-40.0, -8.0, 0.0, 2.0, 6.0, 100.0], dtype=torch.float64)
    picks = torch.randint(6, case.inputs["w"].shape, generator=torch.Generator().manual_seed(5))
    for dtype in DTYPES:
        check(case.with_inputs(w=choices[picks]), backend, dtype)


@every_backend
@every_op
def test_zero_inputs_give_zeros_and_no_nan(op, backend):
    case = make_case(op, 1, 40, 2, 32)
    zeros = {name: torch.zeros_like(x) for name, x in case.inputs.items() if name != "w"}
    for dtype in (torch.float64, *DTYPES):
        check(case.with_inputs(**zeros), backend, dtype)


@every_backend
@pytest.mark.parametrize("factor", [100.0, 1000.0])
@every_op
def test_large_inputs_keep_their_relative_precision(op, backend, factor):
    case = make_case(op, 1, 70, 2, 32, reset=True)
    changes = {name: case.inputs[name] * factor for name in INPUTS[op] if name in "rkv"}
    if op == "wkv4":
        # 10 sigma of an exponent is e^30
        changes["k"] = case.inputs["k"] * 10
    for dtype in (torch.float32, torch.bfloat16):
        check(case.with_inputs(**changes), backend, dtype)


@every_backend
@pytest.mark.parametrize("op", ["wkv4"])
@pytest.mark.parametrize("factor", [30.0, 300.0])
def test_keys_far_beyond_the_range_of_exp_cost_the_digits_of_the_exponent_alone(
    op, backend, factor
):
    case = make_case(op, 1, 70, 1, 64, reset=True)
    case = rounded(case.with_inputs(k=case.inputs["k"] * factor), torch.float32)
    expected, actual = run(case, "reference"), run(case, backend, torch.float32)
    # the rounding of an exponent is a relative error of its exponential
    digits = torch.finfo(torch.float32).eps * case.inputs["k"].abs().max().item()
    for name in ("y", "gw", "gu", "gk", "gv"):
        assert_close(name, actual[name], expected[name], max(digits, TOLERANCE[torch.float32]))


@every_backend
@every_op
@settings(max_examples=25, deadline=None, derandomize=True)
@example(  # wkv7: a gradient of 9e-39
    batch=1,
    time=1,
    heads=1,
    size=1,
    w=81.0,
    spread=6.0,
    scale=1.0,
    reset=False,
    dtype=torch.float32,
    seed=2,
)
@given(
    batch=st.integers(1, 3),
    time=st.integers(1, 70),
    heads=st.integers(1, 3),
    size=st.integers(1, 40),
    w=st.floats(-40, 120),
    spread=st.floats(0, 8),
    scale=st.floats(0.1, 50),
    reset=st.booleans(),
    dtype=st.sampled_from((torch.float64, *DTYPES)),
    seed=st.integers(0, 2**31),
)
def test_it_agrees_on_arbitrary_shapes_and_values(
    op, backend, batch, time, heads, size, w, spread, scale, reset, dtype, seed
):
    case = make_case(op, batch, time, heads, size, seed=seed, reset=reset)
    # fp16 ends at 65504
    scale = min(scale, 2.0) if dtype == torch.float16 else scale
    changes = {"w": w + spread * case.inputs["w"].sigmoid()}
    changes |= {name: case.inputs[name] * scale for name in INPUTS[op] if name in "rkv"}
    if op == "wkv4":
        changes["k"] = case.inputs["k"] * min(scale, 5.0)
    check(case.with_inputs(**changes), backend, dtype)
