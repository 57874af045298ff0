"""The header's lines on the parts of a mixture: all of a few, of a thousand the first and a sum."""

from __future__ import annotations

from fractions import Fraction

from rwkv_train.config.mixture_list import MixtureComponent
from rwkv_train.training.start.mixture_notes import PartRead, mixture_notes


def reads(count: int) -> list[PartRead]:
    share = Fraction(1, count)
    return [
        PartRead(MixtureComponent(f"p{i}", share, share), 1000 + i, i / 4) for i in range(count)
    ]


def test_each_of_a_few_parts_has_a_line() -> None:
    assert mixture_notes(reads(2), with_passes=True) == [
        "part p0: share 0.5, 1,000 tokens, 0 passes",
        "part p1: share 0.5, 1,001 tokens, 0.25 passes",
    ]
    moving = PartRead(MixtureComponent("a", Fraction(1, 4), Fraction(1)), 7, 2.0)
    assert mixture_notes([moving], with_passes=False) == ["part a: share 0.25 to 1, 7 tokens"]
    assert len(mixture_notes(reads(11), with_passes=True)) == 11


def test_of_a_thousand_parts_the_first_ten_have_a_line_and_the_others_one() -> None:
    lines = mixture_notes(reads(1000), with_passes=True)
    assert len(lines) == 11 and lines[9].startswith("part p9:")
    # Tokens 1010 + ... + 1999; the last part is read most often, 999 / 4.
    assert lines[10] == (
        "and 990 more parts: share 0.99, 1,489,455 tokens, up to 250 passes (p999)"
    )
    assert "passes" not in mixture_notes(reads(1000), with_passes=False)[10]
