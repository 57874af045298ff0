"""Tells from the signs of life of all ranks whether the run stands still, and because of whom.

In synchronous training every rank stops soon when one does, so that only what each is doing tells
them apart: those that wait in a collective call wait for somebody who is not in it.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

from rwkv_train.training.distributed.pulse import Beat

WAITS = "communication"
# Starting, saving and validating may take any time, and have limits of their own or none.
_JUDGED = ("training", "data", WAITS)


@dataclass(frozen=True)
class Hang:
    """A run that stands still.

    ranks: those for which the others wait, all where each waits for another; message: a line about
    the first of them, without its stack.
    """

    ranks: tuple[int, ...]
    message: str


def find_hang(
    beats: Mapping[int, Beat], seconds: float, cold_seconds: float, stopped: Container[int] = ()
) -> Hang | None:
    """Returns the hang of a run, None while it moves or may rightly stand.

    beats: of every rank, `still_seconds` as of now; seconds: for which a rank may stand still;
    cold_seconds: the same until every rank has done its first step.  stopped: ranks whose process
    is known to be stopped, which wait for nobody.
    """
    if any(beat.phase not in _JUDGED for beat in beats.values()):
        return None
    limit = seconds if all(beat.is_warm for beat in beats.values()) else cold_seconds
    waiting = [rank for rank, beat in beats.items() if beat.phase == WAITS and rank not in stopped]
    # A rank that computes for long is not hung as long as nobody waits for it; data that does not
    # come is waited for in any case.
    stuck = [
        rank
        for rank, beat in sorted(beats.items())
        if beat.still_seconds >= limit
        and (beat.phase != WAITS or rank in stopped)
        and (waiting or beat.phase == "data")
    ]
    if stuck:
        return Hang(tuple(stuck), _told(stuck, beats, len(waiting)))
    if len(waiting) == len(beats) and all(b.still_seconds >= limit for b in beats.values()):
        return Hang(tuple(sorted(beats)), _all_wait(beats))
    return None


def _told(stuck: list[int], beats: Mapping[int, Beat], waiting: int) -> str:
    beat = beats[stuck[0]]
    others = ""
    if len(stuck) > 1:
        do, s = ("does", "") if len(stuck) == 2 else ("do", "s")
        others = f"; so {do} rank{s} {', '.join(map(str, stuck[1:9]))}"
        others += " and others" if len(stuck) > 9 else ""
    while_waited = f" while {waiting} wait{'s' * (waiting == 1)} for it" if waiting else ""
    return (
        f"stands still in {beat.phase} after step {beat.step} for {beat.still_seconds:.0f} s"
        f"{while_waited}{others}"
    )


def _all_wait(beats: Mapping[int, Beat]) -> str:
    steps = sorted({beat.step for beat in beats.values()})
    after = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
    seconds = min(beat.still_seconds for beat in beats.values())
    hosts = sorted({beat.host for beat in beats.values()})
    shown = ", ".join(hosts[:8]) + (" and others" if len(hosts) > 8 else "")
    return (
        f"all {len(beats)} ranks wait for each other after {after} for {seconds:.0f} s: a "
        f"connection between them (on {shown}) is dead, or a card hangs"
    )
