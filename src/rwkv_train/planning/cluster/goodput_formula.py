"""Goodput on failing machines in closed form, and the interval of saves that makes the most of it.

Failures come at random, one in M seconds on average, also while a run restarts (rate l = 1 / M).
Saves are d seconds of pause after every t seconds of work, s = t + d, and are complete w seconds
later; a recovery takes R. A life that ends after X seconds leaves what was complete then: k saves
for k s + w <= X. So it keeps on average

    t E[k] = t sum over k >= 1 of exp(-l (k s + w)) = t exp(-l w) / (exp(l s) - 1)

of its M seconds, and until the next one works, a recovery that begins anew at every failure in it
takes M (exp(l R) - 1). Kept over spent is the goodput, to all orders:

    l t exp(-l (R + w)) / (exp(l s) - 1)

For w = 0 it is Daly's (2006). To first order 1 - d / t - (s / 2 + w + R) / M: neither R nor w moves
the best t, which solves exp(l s) (1 - l t) = 1, about sqrt(2 d M) (Young, 1974). A save that is due
before the one before it is complete waits for it: from the second on s = d + max(t, w), so that
nothing is gained below t = w.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rwkv_train.goodput import no_seconds
from rwkv_train.planning.cluster.life_cycle import LifeCycle


class Interval(NamedTuple):
    """Steps between saves, and the shares of the wall time that follow, by part: they add to 1."""

    steps: int
    shares: Mapping[str, float]

    @property
    def goodput(self) -> float:
        """The share in which steps are made that the run keeps."""
        return self.shares["training"]


def expected_shares(cycle: LifeCycle, steps: int, down: float = 0.0) -> dict[str, float]:
    """Returns the shares of the wall time of a run that saves after every so many steps.

    down: seconds after every failure for which the run waits for a machine.
    """
    rate = 1 / cycle.between_failures
    work, paused = _kept(cycle, steps * cycle.whole_step, rate)
    # The share of the wall time in which steps are made, whether they are kept or not.
    phases = (cycle.detect, down, cycle.restart, cycle.reload)
    up = math.exp(-rate * sum(phases))
    detect, waited, restart, reload = _phases(phases, rate)
    each = up * work / cycle.whole_step
    cut = up * _cut_off(cycle, steps * cycle.whole_step, rate)
    return {
        **no_seconds(),
        "training": each * cycle.step,
        "data": each * cycle.data,
        "validation": each * cycle.validation,
        "save": up * paused,
        "lost": max(0.0, up * (1 - work - paused) - cut),
        "broken": detect + cut,
        "restart": restart,
        "reload": reload,
        "down": waited,
    }


def best_interval(cycle: LifeCycle) -> Interval | None:
    """Returns the interval with the highest goodput; None where nothing fails: never is best."""
    if math.isinf(cycle.between_failures):
        return None
    least = max(1.0, cycle.save_write / cycle.whole_step)
    work = max(_best_work(cycle) / cycle.whole_step, least)
    tried = {max(1, round_(work)) for round_ in (math.floor, math.ceil)}
    found = [Interval(steps, expected_shares(cycle, steps)) for steps in sorted(tried)]
    return max(found, key=lambda interval: interval.goodput)


def young_interval(cycle: LifeCycle) -> float:
    """Returns the best seconds of work between saves to first order: sqrt(2 d M)."""
    return math.sqrt(2 * cycle.save_pause * cycle.between_failures)


def _best_work(cycle: LifeCycle) -> float:
    """Returns t of exp(l (t + d)) (1 - l t) = 1 by bisection: the left side falls for t > 0."""
    rate = 1 / cycle.between_failures
    paused = rate * cycle.save_pause
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        # In logarithms, so that no power overflows; fifty halves leave 1 - t above 0.
        if middle + paused + math.log1p(-middle) > 0:
            low = middle
        else:
            high = middle
    return low / rate


def _kept(cycle: LifeCycle, work: float, rate: float) -> tuple[float, float]:
    """Returns the shares of a life's seconds that are work and pauses of states it completes."""
    first = work + cycle.save_pause
    span = cycle.save_pause + max(work, cycle.save_write)
    if rate == 0:
        return work / span, 1 - work / span
    # States that a life completes on average: the first, and all; their pauses, of which the
    # later ones may wait for the writing.
    once = math.exp(-rate * (first + cycle.save_write))
    saves = once / -math.expm1(-rate * span)
    pauses = saves * (span - work) - once * (span - first)
    return rate * saves * work, rate * pauses


def _cut_off(cycle: LifeCycle, work: float, rate: float) -> float:
    """Returns the share of a life's seconds that is the step, or the pause, which its end cuts off.

    A failure comes as likely at every moment, so it is e times nearer to a beginning than to one
    1 / l later: of a stretch of u seconds that it falls into 1 / l - u / (exp(l u) - 1) are gone.
    """
    if rate == 0:
        return 0.0
    pause = cycle.save_pause + max(0.0, cycle.save_write - work)
    in_work = math.expm1(-rate * work) / math.expm1(-rate * (work + pause))
    return in_work * _gone(rate * cycle.whole_step) + (1 - in_work) * _gone(rate * pause)


def _gone(length: float) -> float:
    """Returns what is gone of a stretch that a failure falls into; in mean times to failure."""
    return 1 - length * math.exp(-length) / -math.expm1(-length) if length > 0 else 0.0


def _phases(phases: Sequence[float], rate: float) -> list[float]:
    """Returns the share of the wall time that each phase of a recovery takes.

    A failure in any of them begins the first anew: a life of M is followed by exp(l R) attempts,
    each of which spends M (exp(-l a) - exp(-l b)) in the phase from a to b; all is M exp(l R) long.
    """
    left = [math.exp(-rate * end) for end in itertools.accumulate(phases, initial=0.0)]
    return [before - after for before, after in itertools.pairwise(left)]
