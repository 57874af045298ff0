"""Pieces in fp32 and with bf16 inputs err no more than one process does."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from torch import Tensor

from tests.ops.native_cases import OPS, Case, require_kernel, run
from tests.ops.parity import rounded
from tests.ops.pieces.piece_cases import errors, slow_case
from tests.ops.pieces.split_runs import run_split

pytestmark = pytest.mark.usefixtures("one_thread")

TIME, SIZE = 512, 32
CUTS = {4: (128, 256, 384), 16: tuple(range(32, 512, 32))}
# Relative L2 errors: twice one process's own, and some roundings.
FACTOR, ROUNDINGS = 2.0, 3e-7


@lru_cache(maxsize=1)
def problem(op: str, dtype: torch.dtype) -> tuple[Case, dict[str, Tensor]]:
    """A case as a call in `dtype` gets it, and its results in fp64."""
    case = rounded(slow_case(op, 1, TIME, 1, SIZE), dtype)
    return case, run(case, "chunked")


def needs_kernels(op: str, backend: str) -> None:
    """Skips where there is no compiler."""
    if backend == "native":
        require_kernel("wkv7_piece")
        require_kernel(op)


@pytest.mark.parametrize("by_scan", [False, True], ids=["fold", "scan"])
@pytest.mark.parametrize("ranks", CUTS)
@pytest.mark.parametrize("backend", ["chunked", "native"])
@pytest.mark.parametrize("op", OPS)
def test_fp32_errs_at_most_twice_as_much_as_one_process(op, backend, ranks, by_scan):
    needs_kernels(op, backend)
    case, exact = problem(op, torch.float32)
    one = errors(run(case, backend, torch.float32), exact)
    split = run_split(case, CUTS[ranks], torch.float32, backend=backend, by_scan=by_scan)
    found = errors(split, exact)
    assert {n: (found[n], one[n]) for n in one if found[n] > FACTOR * one[n] + ROUNDINGS} == {}


@pytest.mark.parametrize("backend", ["chunked", "native"])
@pytest.mark.parametrize("op", OPS)
def test_bf16_inputs_give_the_results_of_one_process_but_for_single_roundings(op, backend):
    needs_kernels(op, backend)
    case, exact = problem(op, torch.bfloat16)
    one = run(case, backend, torch.bfloat16)
    found = run_split(case, CUTS[4], torch.bfloat16, backend=backend)
    of_one, of_pieces = errors(one, exact), errors(found, exact)
    assert found["y"].dtype == torch.bfloat16
    assert (found["y"] != one["y"]).double().mean().item() <= 0.01
    for name, error in of_one.items():
        assert of_pieces[name] <= FACTOR * error + ROUNDINGS, name
        # the states of the pieces are not rounded to bf16, which would err by 1e-3
        assert errors(found, one)[name] <= 3e-4, name


@pytest.mark.parametrize("backend", ["chunked", "native"])
def test_wkv4s_keys_may_lie_far_beyond_the_range_of_exp(backend):
    needs_kernels("wkv4", backend)
    case = slow_case("wkv4", 1, TIME, 1, SIZE)
    case = rounded(case.with_inputs(k=case.inputs["k"] * 30), torch.float32)
    exact = run(case, "chunked")
    one = errors(run(case, backend, torch.float32), exact)
    found = errors(run_split(case, CUTS[4], torch.float32, backend=backend), exact)
    assert {n: (found[n], one[n]) for n in one if found[n] > FACTOR * one[n] + 3e-5} == {}
