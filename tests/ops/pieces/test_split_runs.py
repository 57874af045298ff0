"""An operator run on pieces equals the operator run on the whole, in fp64 to rounding."""

from __future__ import annotations

import pytest

from tests.helpers import assert_close
from tests.ops.native_cases import OPS, Case, make_case, run, sums
from tests.ops.pieces.split_runs import run_split

pytestmark = pytest.mark.usefixtures("one_thread")

LIMIT = 1e-13
TIME = 50
EVEN = {2: (23,), 3: (17, 34), 4: (13, 26, 39), 16: tuple(range(3, 48, 3))}


def assert_equal_to_whole(case: Case, cuts: tuple[int, ...], **options) -> None:
    """Fails unless every result of the pieces is that of the whole."""
    expected, found = sums(run(case, "reference")), run_split(case, cuts, **options)
    for i in range(1, len(cuts) + 1):
        assert_close(f"border {i}", found.pop(f"fold {i}"), found.pop(f"border {i}"), LIMIT)
    found = sums(found)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert_close(f"{case.op} {name}", value, expected[name], LIMIT)


@pytest.mark.parametrize("by_scan", [False, True], ids=["fold", "scan"])
@pytest.mark.parametrize("ranks", EVEN)
@pytest.mark.parametrize("op", OPS)
def test_pieces_together_are_the_whole(op: str, ranks: int, by_scan: bool):
    assert_equal_to_whole(make_case(op, 2, TIME, 2, 8), EVEN[ranks], by_scan=by_scan)
