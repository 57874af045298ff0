"""Lines of the header about the parts of a mixture, of which there may be a thousand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rwkv_train.config.mixture_list import MixtureComponent

# More are summed up: nobody reads them, and they would hide what comes before.
_PARTS_SHOWN = 10


class PartRead(NamedTuple):
    """A part of a mixture with the size of its data, and how often the run passes over it."""

    part: MixtureComponent
    tokens: int
    passes: float


def mixture_notes(reads: Sequence[PartRead], *, with_passes: bool) -> list[str]:
    """Returns a line for each of the first parts and one for the others.

    with_passes: False where the end of the run is not known.
    """
    if len(reads) <= _PARTS_SHOWN + 1:
        return [_line(read, with_passes) for read in reads]
    shown, others = reads[:_PARTS_SHOWN], reads[_PARTS_SHOWN:]
    return [*(_line(read, with_passes) for read in shown), _sum(others, with_passes)]


def _line(read: PartRead, with_passes: bool) -> str:
    part = read.part
    change = "" if part.begin == part.end else f" to {float(part.end):.4g}"
    passes = f", {read.passes:.3g} passes" if with_passes else ""
    return (
        f"part {part.path}: share {float(part.begin):.4g}{change}, {read.tokens:,} tokens{passes}"
    )


def _sum(reads: Sequence[PartRead], with_passes: bool) -> str:
    begin = float(sum(read.part.begin for read in reads))
    end = float(sum(read.part.end for read in reads))
    change = "" if begin == end else f" to {end:.4g}"
    tokens = sum(read.tokens for read in reads)
    told = f"and {len(reads):,} more parts: share {begin:.4g}{change}, {tokens:,} tokens"
    if not with_passes:
        return told
    # Read most often, a part is what a run overfits first.
    most = max(reads, key=lambda read: read.passes)
    return f"{told}, up to {most.passes:.3g} passes ({most.part.path})"
