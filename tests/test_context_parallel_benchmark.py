"""A sample on four processes: the memory of a piece, and the bytes that the formula says."""

from __future__ import annotations

import pytest

from benchmarks import context_parallel
from benchmarks.context_parallel import (
    LIMIT,
    Measured,
    Shape,
    Step,
    formula_bytes,
    measure,
    wall_cells,
)

LONG = Shape("7", layers=1, width=64, vocab=64, ctx_len=65536)


def test_the_formula_is_that_of_the_pages():
    # RWKV-7: 3 others' pieces of 2 x 128 x 64 numbers, two borders of 128; states of 128 x 64
    wide = LONG._replace(width=128)
    assert formula_bytes(wide, 4) == (4 * (3 * 2 * 8192 + 256), 4 * (3 * 8192 + 256))
    assert formula_bytes(wide._replace(version="6"), 2) == (4 * (128 * 65 + 256), 4 * (8192 + 256))
    assert formula_bytes(wide._replace(version="4"), 2) == (4 * (385 + 256), 4 * (384 + 256))
    assert formula_bytes(wide, 1) == (0, 0)


def test_wall_time_is_told_where_every_rank_has_a_processor(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(context_parallel, "usable_processors", lambda: 2)
    ranks = [
        Measured(peak=7, seconds=3.0, wall=5.5, added=0.5, forward=0, backward=0, error=0.0),
        Measured(peak=9, seconds=4.0, wall=6.0, added=0.75, forward=0, backward=0, error=0.0),
    ]
    step = Step.of(ranks)
    assert step == Step(peak=9, seconds=7.0, wall=6.0, added=0.75)
    # Half of ten seconds, and 0.75 more.
    one = Step(peak=9, seconds=7.0, wall=10.0, added=0.0)
    assert wall_cells(step, one, 2) == "6.00 | 0.60 | 0.57"
    assert wall_cells(step, one, 3) == "- | - | -"


@pytest.mark.slow
def test_four_processes_hold_a_quarter_of_the_activations_each():
    (alone,) = measure(LONG, 1, repeats=0)
    ranks = measure(LONG, 4, repeats=0)
    assert max(rank.peak for rank in ranks) < 0.30 * alone.peak
    # The first rank has no border before it, the last one none behind.
    assert max(rank.forward for rank in ranks) == formula_bytes(LONG, 4)[0]
    assert max(rank.backward for rank in ranks) == formula_bytes(LONG, 4)[1]
    assert all(rank.error < LIMIT for rank in ranks)
