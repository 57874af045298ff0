"""An operator run on pieces equals the operator run on the whole, in fp64 to rounding."""

from __future__ import annotations

import pytest

from tests.ops.native_cases import OPS, Case, require_kernel, run
from tests.ops.pieces.piece_cases import errors, slow_case, with_resets, without_states
from tests.ops.pieces.split_runs import run_split

pytestmark = pytest.mark.usefixtures("one_thread")

LIMIT = 1e-13
TIME = 50
CUTS = {2: (23,), 3: (17, 34), 4: (5, 22, 23), 16: tuple(range(3, 48, 3))}

every_op = pytest.mark.parametrize("op", OPS)
every_way = pytest.mark.parametrize("by_scan", [False, True], ids=["fold", "scan"])


def assert_equal_to_whole(case: Case, cuts: tuple[int, ...], **options) -> None:
    """Fails unless every result of the pieces is that of the whole."""
    found = errors(run_split(case, cuts, **options), run(case, "reference"))
    assert {name: error for name, error in found.items() if not error <= LIMIT} == {}


@every_way
@pytest.mark.parametrize("ranks", CUTS)
@every_op
def test_pieces_together_are_the_whole(op: str, ranks: int, by_scan: bool):
    assert_equal_to_whole(slow_case(op, 2, TIME, 2, 8), CUTS[ranks], by_scan=by_scan)


@every_way
@pytest.mark.parametrize("backend", ["chunked", "native"])
@every_op
def test_they_are_with_faster_backends_too(op: str, backend: str, by_scan: bool):
    if backend == "native":
        require_kernel(f"{op.replace('wkv5', 'wkv5_6').replace('wkv6', 'wkv5_6')}_piece")
        require_kernel(op)
    case = slow_case(op, 2, 150, 2, 8, reset=True)
    assert_equal_to_whole(case, (37, 70, 133), backend=backend, by_scan=by_scan)


@every_way
@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("final", [False, True])
@every_op
def test_states_at_the_ends_are_optional(op: str, initial: bool, final: bool, by_scan: bool):
    case = without_states(slow_case(op, 1, 20, 2, 4), initial=not initial, final=not final)
    for cuts in ((9,), (4, 9, 15)):
        assert_equal_to_whole(case, cuts, by_scan=by_scan)


@every_way
@every_op
def test_pieces_of_one_token_are_pieces(op: str, by_scan: bool):
    assert_equal_to_whole(slow_case(op, 2, 6, 1, 4), (1, 2, 3, 4, 5), by_scan=by_scan)
    assert_equal_to_whole(slow_case(op, 2, 16, 1, 4), (1, 14, 15), by_scan=by_scan)


# Of two batch rows. At the first token of a piece, at its last, twice in one, and in all of them.
RESETS = {
    "first": ((0, 8),),
    "last": ((0, 15),),
    "twice": ((0, 9), (0, 13)),
    "sequence": ((0, 0),),
    "everywhere": ((0, 3), (0, 8), (0, 20), (1, 8), (1, 16), (1, 23)),
    "each token": tuple((0, t) for t in range(24)),
}


@every_way
@pytest.mark.parametrize("places", RESETS.values(), ids=RESETS)
@every_op
def test_documents_may_start_anywhere(op: str, places, by_scan: bool):
    case = with_resets(slow_case(op, 2, 24, 2, 4), *places)
    for backend in ("reference", "chunked"):
        assert_equal_to_whole(case, (8, 16), by_scan=by_scan, backend=backend)


def test_wkv4s_sums_of_nothing_have_no_scale():
    case = slow_case("wkv4", 1, 12, 1, 4)
    case = case.with_inputs(
        **{name: case.inputs[name] * 0 for name in ("aa", "bb", "pp")}, k=case.inputs["k"] - 50
    )
    assert_equal_to_whole(case, (4, 8))
