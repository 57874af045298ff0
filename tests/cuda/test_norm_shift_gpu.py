"""The norm and shift on a CUDA device, compared with the definition in fp64."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.errors import BackendError
from rwkv_train.ops.native.custom_ops import CUDA_DTYPES
from rwkv_train.ops.norm_shift import norm_shift
from tests.cuda.gpu_calls import DEVICE
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


def test_strided_and_unaligned_inputs_are_served():
    case = on_device(rounded(make_norm_case(2, 40, 64, 3, branch="gate"), torch.float32))
    given = {name: x.float() for name, x in case.inputs.items()}
    moved = {}
    for name, x in given.items():
        # Every second element of a buffer that begins in the middle of 16 bytes.
        buffer = torch.zeros(2 * x.numel() + 3, dtype=x.dtype, device=x.device)
        moved[name] = buffer[3:][: 2 * x.numel()].view(*x.shape, 2)[..., 0]
        moved[name].copy_(x)
    expected, found = (fused(x, case.reset, torch.bfloat16, "native") for x in (given, moved))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_it_runs_on_the_current_stream():
    case = on_device(rounded(make_norm_case(8, 500, 768, 6), torch.float32))
    expected = run_norm(case, "native", torch.float32)
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
        found = run_norm(NormCase(late, case.reset, case.gradients), "native", torch.float32)
    stream.synchronize()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_tensors_of_more_than_two_to_the_31_elements_are_indexed_right():
    batch, time, width = 65, 8192, 4096
    if torch.cuda.get_device_properties(0).total_memory < 40 << 30:
        pytest.skip("needs 40 GiB of memory on the device")
    one, gy = (torch.randn(1, time, width, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    weight, bias, mixes = torch.rand(3, width, device=DEVICE)

    def of_rows(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = one.expand(count, -1, -1).contiguous().requires_grad_()
        (y,) = norm_shift(x, weight, bias, mixes[None], backend="native").mixed
        y.backward(gy.expand(count, -1, -1))
        return y.detach(), x.grad

    for alone, many in zip(of_rows(1), of_rows(batch)):
        assert torch.equal(many[-1:], alone) and torch.equal(many[:1], alone)
