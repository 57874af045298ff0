"""The one comparison of a backend with the fp64 reference: same rounded inputs, every result."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rwkv_train.ops.precision import compute_dtype
from tests.helpers import allowed_error, assert_close
from tests.ops.native_cases import WIDE, Case, run, sums

# Kernels flush numbers below the smallest normal one to 0, also on the way: a sum of up to 100
# products is exact to 1e-5 only from 1e7 times that number on.
FLUSHED_BELOW = 1e7


def rounded(case: Case, dtype: torch.dtype) -> Case:
    """The case as a call in `dtype` receives it, in fp64.

    The gradient of y too: autograd hands it over in the dtype of y.
    """
    wide = compute_dtype(dtype)
    inputs = {
        name: x.to(wide if name in WIDE else dtype).double() for name, x in case.inputs.items()
    }
    return replace(case, inputs=inputs, gy=case.gy.to(dtype).double())


def expected_results(case: Case) -> dict[str, Tensor]:
    """Every result of the fp64 token loop; of wkv4's final state the sums it stands for."""
    return sums(run(case, "reference"))


def check(case: Case, backend: str, dtype: torch.dtype = torch.float32) -> None:
    """Fails unless `backend`, in dtype, agrees with the reference on the same rounded inputs."""
    case = rounded(case, dtype)
    compare(case, expected_results(case), backend, dtype)


def compare(case: Case, expected: dict[str, Tensor], backend: str, dtype: torch.dtype) -> None:
    """Fails, naming the result, where `backend` errs more than `allowed_error`.

    case: as `rounded` gives it; expected: its `expected_results`.
    """
    compare_results(case, expected, run(case, backend, dtype), f"{backend} in {dtype}")


def compare_results(
    case: Case, expected: dict[str, Tensor], actual: dict[str, Tensor], who: str
) -> None:
    """As `compare`, for results that `who` has computed already; by the names that `run` gives."""
    actual, wide = sums(actual), compute_dtype(actual["y"].dtype)
    assert actual.keys() == expected.keys()
    if "gpp" in expected:
        # The sum of aa gaa and bb gbb, which may cancel down to their rounding in any fp32
        # computation: without its first term it is judged by the size of the second.
        first = case.inputs["aa"] * expected["gaa"]
        actual |= {"gpp": actual["gpp"].double() - first}
        expected = expected | {"gpp": expected["gpp"] - first}
    for name, value in actual.items():
        value, exact = flushed(value, wide), flushed(expected[name], wide)
        label = f"{case.op} {name} of {who}"
        if not exact.any():
            assert not value.any(), f"{label}: expected zeros"
        # wkv4's sums, products of two results, are in fp64
        stored = wide if value.dtype == torch.float64 else value.dtype
        assert_close(label, value, exact, allowed_error(exact, stored))


def flushed(x: Tensor, wide: torch.dtype) -> Tensor:
    """x with 0 for what is close to the smallest normal number of the computing type."""
    return torch.where(x.abs() < FLUSHED_BELOW * torch.finfo(wide).tiny, 0.0, x)
