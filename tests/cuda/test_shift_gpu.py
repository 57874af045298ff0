"""The token shift on a CUDA device, compared with the reference in fp64."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.errors import BackendError
from rwkv_train.ops.native.custom_ops import CUDA_DTYPES
from rwkv_train.ops.token_shift import token_shift
from tests.cuda.gpu_calls import DEVICE, shift_on_device
from tests.cuda.problems import assert_results_match
from tests.cuda.shift_problems import Types, expected_shift_results, rounded
from tests.ops.shift_cases import Case, make_case, run

pytestmark = pytest.mark.gpu

every_dtype = pytest.mark.parametrize("dtype", CUDA_DTYPES, ids=str)


def check(case: Case, dtype: torch.dtype, to: torch.dtype | None = None) -> None:
    """Fails unless the native backend is as exact as fp32 sums, rounded once, can be."""
    case = shift_on_device(rounded(case, Types(dtype, to or dtype, dtype)))
    assert_results_match(run(case, "native", dtype, to), expected_shift_results(case))


@every_dtype
@pytest.mark.parametrize("time", (1, 2, 15, 16, 17, 63, 64, 65, 500))
def test_it_equals_the_reference_at_any_length(dtype, time):
    check(make_case(3, time, 96, 6, seed=time), dtype)


@every_dtype
@pytest.mark.parametrize("width", (1, 7, 33, 256, 260, 768, 2048))
def test_it_equals_the_reference_at_any_width(dtype, width):
    check(make_case(2, 70, width, 3), dtype)


@pytest.mark.parametrize("count", (1, 8))
@pytest.mark.parametrize("last", (True, False), ids=("last", "no_last"))
@pytest.mark.parametrize("moves", (True, False), ids=("moves", "no_moves"))
@pytest.mark.parametrize("reset", (True, False), ids=("reset", "no_reset"))
def test_every_option_is_served(count, last, moves, reset):
    case = make_case(2, 200, 64, count, last=last, moves=moves, reset=reset)
    check(case, torch.float32)
    check(case, torch.bfloat16)


@pytest.mark.parametrize("dtype", CUDA_DTYPES[1:], ids=str)
def test_results_may_be_rounded_to_another_dtype(dtype):
    check(make_case(2, 70, 96, 6), torch.float32, dtype)


def test_two_runs_give_the_same_bits():
    case = shift_on_device(rounded(make_case(8, 500, 768, 6), Types(*[torch.bfloat16] * 3)))
    first, second = (run(case, "native", torch.bfloat16) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_strided_and_unaligned_inputs_are_served():
    case = shift_on_device(rounded(make_case(2, 40, 64, 3), Types(*[torch.bfloat16] * 3)))
    given = {name: x.bfloat16() for name, x in case.inputs.items()}
    moved = {}
    for name, x in given.items():
        # Every second element of a buffer that begins in the middle of 16 bytes.
        buffer = torch.zeros(2 * x.numel() + 3, dtype=x.dtype, device=x.device)
        moved[name] = buffer[3:][: 2 * x.numel()].view(*x.shape, 2)[..., 0]
        moved[name].copy_(x)
    expected, found = (
        token_shift(
            x["x"], x["mixes"], x["last"], moves=x["moves"], reset=case.reset, backend="native"
        )
        for x in (given, moved)
    )
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_it_runs_on_the_current_stream():
    case = shift_on_device(rounded(make_case(8, 500, 768, 6), Types(*[torch.float32] * 3)))
    expected = run(case, "native", torch.float32)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Work before it on this stream alone: a kernel elsewhere would read the inputs too early.
        busy = torch.randn(4096, 4096, device=DEVICE)
        late = {name: torch.full_like(x, float("nan")) for name, x in case.inputs.items()}
        for _ in range(20):
            busy = busy @ busy / 64
        for name, x in late.items():
            x.copy_(case.inputs[name])
        found = run(Case(late, case.reset, case.gy), "native", torch.float32)
    stream.synchronize()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_fp64_is_refused_by_name_and_served_by_auto():
    case = shift_on_device(rounded(make_case(1, 20, 16, 2), Types(*[torch.float64] * 3)))
    with pytest.raises(BackendError, match=r"not torch\.float64"):
        run(case, "native")
    found, expected = run(case, "auto"), expected_shift_results(case)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("options", (True, False), ids=("options", "no_options"))
@every_dtype
def test_torch_accepts_the_registration(options, dtype):
    case = shift_on_device(
        rounded(
            make_case(2, 35, 24, 3, last=options, moves=options, reset=options),
            Types(torch.float32, dtype, torch.float32),
        )
    )
    run(case, "native", torch.float32)  # loads and registers
    leaves = {name: x.float().requires_grad_() for name, x in case.inputs.items()}
    tensors = [leaves["x"], leaves["mixes"], leaves.get("last"), leaves.get("moves"), case.reset]
    torch.library.opcheck(torch.ops.rwkv.token_shift_forward, (*tensors, dtype))
    plain = [x if x is None else x.detach() for x in tensors]
    gy = [g.to(dtype) for g in case.gy]
    torch.library.opcheck(torch.ops.rwkv.token_shift_backward, (gy, *plain))


def test_it_can_be_compiled_without_a_graph_break():
    case = shift_on_device(rounded(make_case(1, 20, 16, 2), Types(*[torch.float32] * 3)))
    given = {name: x.float() for name, x in case.inputs.items()}
    arguments = (given["x"], given["mixes"], given["last"])
    options = {"moves": given["moves"], "reset": case.reset, "backend": "native"}
    expected = token_shift(*arguments, **options)
    found = torch.compile(token_shift, backend="aot_eager", fullgraph=True)(*arguments, **options)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.slow
def test_tensors_of_more_than_two_to_the_31_elements_are_indexed_right():
    batch, time, width = 65, 8192, 4096
    if torch.cuda.get_device_properties(0).total_memory < 40 << 30:
        pytest.skip("needs 40 GiB of memory on the device")
    one = torch.randn(1, time, width, device=DEVICE, dtype=torch.bfloat16)
    mixes = torch.rand(1, width, device=DEVICE)
    gy = torch.randn_like(one)

    def of_rows(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = one.expand(count, -1, -1).contiguous().requires_grad_()
        (y,) = token_shift(x, mixes, backend="native")
        y.backward(gy.expand(count, -1, -1))
        return y.detach(), x.grad

    for alone, many in zip(of_rows(1), of_rows(batch)):
        assert torch.equal(many[-1:], alone) and torch.equal(many[:1], alone)
