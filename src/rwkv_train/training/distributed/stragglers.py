"""Finds the ranks that the others wait for, by what a step costs each of them without the waiting.

Told by the beats of the watch, now and then: no step pays for it.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping

from rwkv_train.training.distributed.pulse import Beat

WINDOW_SECONDS = 30.0
# Below it a rank is as slow as any may be once.
SLOW_RATIO = 1.25
_FEWEST_STEPS = 3


class Stragglers:
    """Compares the ranks window by window; a rank counts as slow from the second one on."""

    def __init__(self, window_seconds: float = WINDOW_SECONDS) -> None:
        self._window_seconds = window_seconds
        self._began: float | None = None
        self._before: dict[int, Beat] = {}
        self._suspected: set[int] = set()
        self._told: set[int] = set()

    def look(self, beats: Mapping[int, Beat], now: float) -> list[str] | None:
        """Returns the slow ranks, a line each, when they are others than before; else None.

        An empty list: none is slow any more. now: seconds.
        """
        if self._began is None or set(beats) != set(self._before):
            self._begin(beats, now)
            return None
        steps = {
            rank: beat.steps_here - self._before[rank].steps_here for rank, beat in beats.items()
        }
        if now - self._began < self._window_seconds or min(steps.values()) < _FEWEST_STEPS:
            return None
        work = {
            rank: (beat.work_seconds - self._before[rank].work_seconds) / steps[rank]
            for rank, beat in beats.items()
        }
        self._begin(beats, now)
        ratios = slow_ratios(work)
        slow = set(ratios) & self._suspected
        self._suspected = set(ratios)
        # One that is at the limit now and then is not told again each time.
        if slow == self._told or (not slow and ratios):
            return None
        self._told = slow
        return _by_host({rank: ratios[rank] for rank in slow}, work, beats)

    def _begin(self, beats: Mapping[int, Beat], now: float) -> None:
        self._began, self._before = now, dict(beats)


def slow_ratios(work: Mapping[int, float]) -> dict[int, float]:
    """Returns the slow ranks and how many times the middle rank's time each takes.

    work: rank -> seconds a step without waits for others.
    """
    found = {}
    for rank, seconds in work.items():
        others = [value for other, value in work.items() if other != rank]
        middle = statistics.median(others) if others else seconds
        if middle > 0 and seconds > SLOW_RATIO * middle:
            found[rank] = seconds / middle
    return found


def _by_host(
    ratios: Mapping[int, float], work: Mapping[int, float], beats: Mapping[int, Beat]
) -> list[str]:
    hosts: dict[str, list[int]] = defaultdict(list)
    for rank in sorted(ratios):
        hosts[beats[rank].host].append(rank)
    lines = []
    for host, ranks in sorted(hosts.items()):
        worst = max(ranks, key=lambda rank: ratios[rank])
        several = len([b for b in beats.values() if b.host == host])
        who = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks[:8]))}"
        if len(ranks) == several > 1:
            who = f"all {several} ranks"
        lines.append(
            f"{host} is slow: {who}, {work[worst]:.3g} s a step without waiting, "
            f"{ratios[worst]:.2g} x the others"
        )
    return lines
