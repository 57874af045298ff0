"""Every backend's transition, contribution and gradient of the state against the fp64 loop."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from rwkv_train.errors import BackendError
from rwkv_train.ops import pieces
from rwkv_train.ops.pieces import (
    operator_calls,
    wkv4_piece,
    wkv4_state_gradient,
    wkv6_piece,
    wkv7_piece,
)
from rwkv_train.ops.pieces.algebra import ScaledPiece
from rwkv_train.verification.tolerances import relative_rms
from tests.ops.native_cases import OPS, Case, make_case, require_kernel
from tests.ops.parity import rounded
from tests.ops.pieces.piece_cases import slow_case
from tests.ops.pieces.split_runs import cut_case, gradient_of, piece_of

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned_memory")

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LIMITS = {torch.float64: 1e-13, torch.float32: 1e-6}
# A whole piece's decay in fp32 is as exact as the logarithm, which may be as large as 90.
TRANSITION_LIMIT = 1e-5
SHAPES = ((2, 50, 2, 8), (1, 1, 1, 1), (2, 150, 3, 5), (1, 33, 1, 64), (1, 64, 2, 32))

every_op = pytest.mark.parametrize("op", OPS)
every_backend = pytest.mark.parametrize("backend", ["chunked", "native"])


@pytest.fixture(autouse=True)
def compiled(request):
    """Skips `native` where there is no compiler."""
    if "native" in getattr(request.node, "name", ""):
        require_kernel("wkv7_piece")
        require_kernel("wkv4")


def results_of(case: Case, dtype: torch.dtype, backend: str) -> dict[str, Tensor]:
    """Transition, contribution and gradient; of wkv4 the sums on the scale of the fp64 loop."""
    (rank,) = cut_case(case, (), dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    state: Any = tuple(case.inputs[name].to(wide) for name in case.state_names)
    piece = piece_of(case.op, rank, backend)
    gradient = gradient_of(case.op, rank, state, backend)
    assert all(x.dtype == wide and not x.requires_grad for x in piece.tensors())
    if isinstance(piece, ScaledPiece):
        aa, bb, pp = (x.double() for x in piece.sums)
        sums = {"a": aa * pp.exp(), "b": bb * pp.exp(), "span": piece.span.nan_to_num(posinf=-1)}
        return sums | {"ga": gradient[0], "gb": gradient[1]}
    transition, contribution = piece.tensors()
    return {"transition": transition, "contribution": contribution, "gradient": gradient}


@lru_cache(maxsize=1)
def expected(make, op: str, shape: tuple[int, ...], dtype: torch.dtype, reset: bool):
    """A case as a call in `dtype` gets it, and what the fp64 loop makes of it."""
    case = rounded(make(op, *shape, seed=shape[1], reset=reset), dtype)
    return case, results_of(case, torch.float64, "reference")


def assert_agrees(case: Case, exact: dict[str, Tensor], backend: str, dtype: torch.dtype) -> None:
    """Fails unless all results of `backend` are exact to rounding."""
    limit = LIMITS[torch.float64 if dtype == torch.float64 else torch.float32]
    for name, value in results_of(case, dtype, backend).items():
        bound = max(limit, TRANSITION_LIMIT) if name == "transition" and limit > 1e-9 else limit
        error = relative_rms(value, exact[name])
        assert error <= bound, f"{case.op} {name} of {backend} in {dtype}: {error:.1e}"


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@every_op
@every_backend
def test_it_agrees_on_every_shape(backend, op, shape, dtype, reset):
    for make in (make_case, slow_case):
        assert_agrees(*expected(make, op, shape, dtype, reset), backend, dtype)


@pytest.mark.parametrize("reset", [False, True])
@every_op
@every_backend
def test_calls_of_the_operators_give_the_same(monkeypatch, backend, op, reset):
    require_kernel(op)
    monkeypatch.setattr(
        pieces, "dispatch", lambda _, name, call, arguments: operator_calls.run(name, *arguments)
    )
    for shape in ((2, 50, 2, 8), (1, 1, 1, 1)):
        case = rounded(slow_case(op, *shape, seed=shape[1], reset=reset), torch.float32)
        exact = results_of(case, torch.float64, "reference")
        for dtype in (torch.float64, torch.float32):
            assert_agrees(case, exact, backend, dtype)


# From no decay at all to one that forgets at once; of RWKV-5 and 6 e^w per token are lost.
@pytest.mark.parametrize("w", [-1000.0, -8.0, -4.0, 0.0, 2.0, 50.0])
@every_op
@every_backend
def test_contributions_of_long_pieces_keep_their_digits_for_every_decay(backend, op, w):
    case = slow_case(op, 1, 2048, 1, 4)
    spread = torch.linspace(0, 1, 4, dtype=torch.float64).expand(case.inputs["w"].shape)
    case = (
        case.with_inputs(w=w + spread, a=case.inputs["a"] / 2)
        if op == "wkv7"
        else (case.with_inputs(w=w + spread))
    )
    case = rounded(case, torch.float32)
    exact = results_of(case, torch.float64, "chunked")
    found = results_of(case, torch.float32, backend)
    for name in ("a", "b") if op == "wkv4" else ("contribution", "gradient"):
        error = relative_rms(found[name], exact[name])
        assert error < 2e-6, f"{name}: {error:.1e}"


@every_backend
def test_the_transition_of_a_closed_row_may_have_overflowed(backend):
    """A document start hides what came before, however large: it is not multiplied by zero."""
    case = slow_case("wkv7", 2, 200, 1, 2)
    given = {name: x.clone() for name, x in case.inputs.items()}
    # the state grows 10^4 times a token, to 10^760
    given["a"][0, :190], given["b"][0, :190] = 100.0, 100.0
    reset = torch.zeros(2, 200, dtype=torch.bool)
    reset[0, 190] = True
    piece = wkv7_piece(*(given[name] for name in "wkvab"), backend=backend, reset=reset)
    later = wkv7_piece(*(given[name][:, 190:] for name in "wkvab"), backend=backend)
    assert not piece.transition[0].any()
    assert relative_rms(piece.contribution[0], later.contribution[0]) < 1e-13
    assert piece.transition[1].any()


@every_op
def test_native_results_do_not_depend_on_the_number_of_threads(op):
    require_kernel("wkv7_piece")
    require_kernel(op)
    case = rounded(slow_case(op, 3, 120, 5, 32, reset=True), torch.float32)
    one = results_of(case, torch.float32, "native")
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        three = results_of(case, torch.float32, "native")
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(three[name], one[name]) for name in one)


@pytest.mark.parametrize("with_reset", [False, True])
def test_its_native_ops_pass_opcheck(with_reset):
    require_kernel("wkv7_piece")
    x, w = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4)
    row, reset = torch.randn(3, 4), torch.zeros(2, 5, dtype=torch.bool) if with_reset else None
    # the first calls describe the ops to torch
    wkv4_piece(row[0], x[:, :, 0], x[:, :, 1], backend="native")
    wkv6_piece(x, x, w, backend="native")
    wkv7_piece(w, x, x, x, x, backend="native")
    ops, tests = torch.ops.rwkv, ("test_schema", "test_faketensor")
    found = [opcheck(ops.wkv4_piece, (row[0], x[:, :, 0], x[:, :, 1], reset, 0), test_utils=tests)]
    for backwards in (False, True):
        more = (row, reset, backwards, 0)
        found.append(opcheck(ops.wkv5_6_piece, (x, x, w, *more), test_utils=tests))
        found.append(opcheck(ops.wkv7_piece, (w, x, x, x, x, *more), test_utils=tests))
    assert {outcome for outcomes in found for outcome in outcomes.values()} == {"SUCCESS"}


def test_arguments_that_do_not_fit_are_named():
    x = torch.zeros(1, 4, 2, 8)
    with pytest.raises(BackendError, match=r"wkv6_piece: w has shape \[1, 3, 2, 8\]"):
        wkv6_piece(x, x, x[:, :3])
    with pytest.raises(BackendError, match="wkv7_piece: b has dtype"):
        wkv7_piece(x, x, x, x, x.long())
    with pytest.raises(BackendError, match="wkv4_piece: reset is"):
        wkv4_piece(x[0, 0, 0], x[:, :, 0], x[:, :, 0], reset=x[..., 0, 0])
    with pytest.raises(BackendError, match="wkv4_state_gradient: state aa has shape"):
        y, row = x[:, :, 0], x[0, 0, 0]
        wkv4_state_gradient(y, row, row, y, y, (row, row, row))
    with pytest.raises(BackendError, match="unknown backend 'native:chunks'"):
        wkv4_piece(x[0, 0, 0], x[:, :, 0], x[:, :, 0], backend="native:chunks")
