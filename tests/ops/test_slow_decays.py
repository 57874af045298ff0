"""Decays just below 1, equal at every token: their rounding must not add up over a long text."""

from __future__ import annotations

import pytest
import torch

from tests.helpers import TOLERANCE, assert_close
from tests.ops.native_cases import Case, make_case, require_native, run, sums
from tests.ops.parity import compare, expected_results, rounded


def with_decay(op: str, time: int, decay: float) -> Case:
    """A case of one head of 16 channels whose decays lie around this one."""
    case = make_case(op, 1, time, 1, 16)
    log_rate = torch.log(-torch.log(torch.tensor(decay, dtype=torch.float64)))
    spread = torch.linspace(-0.3, 0.3, 16, dtype=torch.float64)
    if op == "wkv7":
        # the decay is exp(-exp(-1/2) sigmoid(w))
        w = torch.logit(torch.exp(log_rate + spread + 0.5))
        # what is removed would otherwise make up for what decays too slowly
        return case.with_inputs(w=w.expand(1, time, 1, 16), b=case.inputs["b"] / 1000)
    w = log_rate + spread
    return case.with_inputs(w=w.expand(case.inputs["w"].shape).clone())


@pytest.mark.parametrize("op", ["wkv5", "wkv6", "wkv7"])
def test_every_fast_backend_agrees_with_the_fp64_loop_over_4096_tokens(op: str):
    require_native(op)
    case = rounded(with_decay(op, 4096, 0.9999), torch.float32)
    expected = expected_results(case)
    for backend in ("native", "chunked"):
        compare(case, expected, backend, torch.float32)


@pytest.mark.parametrize(
    ("time", "decay"), [(16384, 0.99), (16384, 0.9999), (8192, 0.999999), (4096, 0.9999999)]
)
@pytest.mark.parametrize("op", ["wkv4", "wkv5", "wkv6", "wkv7"])
def test_native_agrees_with_chunks_in_fp64_over_longer_texts(op: str, time: int, decay: float):
    require_native(op)
    case = rounded(with_decay(op, time, decay), torch.float32)
    compare(case, sums(run(case, "chunked")), "native", torch.float32)


def test_native_wkv4_errs_by_a_rounding_or_two_over_65536_tokens():
    require_native("wkv4")
    case = rounded(with_decay("wkv4", 65536, 0.999999), torch.float32)
    expected, found = sums(run(case, "chunked")), sums(run(case, "native", torch.float32))
    assert_close("gw", found.pop("gw"), expected.pop("gw"), TOLERANCE[torch.float32])
    for name in found:
        assert_close(name, found[name], expected[name], TOLERANCE[torch.float32] / 10)


@pytest.mark.parametrize("backend", ["native", "chunked"])
def test_outputs_and_sums_of_wkv4_agree_with_the_fp64_loop_over_4096_tokens(backend: str):
    require_native("wkv4")
    case = rounded(with_decay("wkv4", 4096, 0.9999), torch.float32)
    expected, found = sums(run(case, "reference")), sums(run(case, backend, torch.float32))
    # Not gk and gw, small differences of large numbers.
    for name in ("y", "final a", "final b", "gu", "gv", "gaa", "gbb"):
        assert_close(name, found[name], expected[name], TOLERANCE[torch.float32])
