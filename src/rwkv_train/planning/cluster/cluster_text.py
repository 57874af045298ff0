"""A run on failing machines as lines that people read."""

from __future__ import annotations

import math

from rwkv_train.planning.amounts import decimal_bytes, duration, rounded, short_count
from rwkv_train.planning.cluster.cluster_plan import ClusterPlan, IntervalOutcome
from rwkv_train.planning.cluster.courses import Courses
from rwkv_train.planning.text_table import text_table

_PARTS = ("training", "lost", "broken", "restart", "reload", "save", "down")


def cluster_lines(found: ClusterPlan) -> list[str]:
    """Returns the lines of a cluster's part of a plan, sections with an empty line between them."""
    lines = [*_machines(found), "", *_intervals(found)]
    lines += _simulations(found)
    if found.best is not None:
        lines += ["", *_changes(found)]
    return [*lines, *_verdict(found)]


def _machines(found: ClusterPlan) -> list[str]:
    hardware, cycle, save, pool = found.plan.config.hardware, found.cycle, found.save, found.pool
    if math.isinf(cycle.between_failures):
        failures = "no machine fails"
    else:
        each = duration(found.wishes.mttf)
        failures = f"one fails every {duration(cycle.between_failures)}, each every {each}"
    parts = [f"notice {duration(cycle.detect)}"]
    parts += [f"repair {duration(found.down)}"] if found.down else []
    parts += [f"start {duration(cycle.restart)}", f"read the state {duration(cycle.reload)}"]
    return [
        f"on {_many(pool.count, 'machine')} of {_many(hardware.devices, 'card')}: {failures}",
        f"  recovery {duration(cycle.recovery + found.down)}: {', '.join(parts)}",
        f"  a save stops training for {duration(cycle.save_pause)} ({decimal_bytes(save.shard)} a "
        f"card) and is complete {duration(cycle.save_write)} later ({decimal_bytes(save.size)})",
        *_without_one(found),
    ]


def _without_one(found: ClusterPlan) -> list[str]:
    """Returns a line on what a run does while a machine is away."""
    pool = found.pool
    if pool.count == 1:
        return []
    if not pool.repair:
        return ["  a broken machine is replaced at once: --repair_minutes, --spare_nodes say else"]
    back = f"  a broken machine is back after {duration(pool.repair)}"
    back += f"; {pool.spares} spare, then" if pool.spares else "; until then"
    on = pool.working(pool.spares + 1)
    if on is None:
        return [f"{back} the run waits (--spare_nodes, --min_nodes)"]
    return [f"{back} the run goes on with {on:,} of {pool.count:,}"]


def _intervals(found: ClusterPlan) -> list[str]:
    named = [found.own, found.best, *found.near]
    rows = [
        (
            f"{_every(found, outcome)}, {outcome.name}",
            *(_percent(outcome.interval.shares[part]) for part in _PARTS),
        )
        for outcome in named
        if outcome is not None
    ]
    heads = ("a save every", "goodput", *_PARTS[1:])
    lines = text_table(heads, rows, "l" + "r" * len(_PARTS))
    if not found.formula_holds:
        lines.append("  by the formula, as though broken machines were replaced at once")
    if found.own is None:
        lines.append("The run never saves: --save_every_minutes or --save_every_steps says when.")
    if found.best is not None and found.best.interval.steps > 1:
        lines.append(_flatness(found))
    return lines


def _flatness(found: ClusterPlan) -> str:
    """Returns a line on how flat the goodput is around its best."""
    assert found.best is not None, "asked for only where there is one"
    best = found.best.interval.goodput
    lost = [best - outcome.interval.goodput for outcome in found.near]
    return (
        f"Half of the best interval costs {100 * lost[0]:.2g} points of goodput, twice of it "
        f"{100 * lost[-1]:.2g}."
    )


def _percent(share: float) -> str:
    # Less is the rounding of what is nothing.
    return f"{share:.1%}" if share > 1e-12 else "-"


def _every(found: ClusterPlan, outcome: IntervalOutcome) -> str:
    steps = outcome.interval.steps
    return f"{_many(steps, 'step')}, {duration(steps * found.cycle.whole_step)}"


def _many(count: int, word: str) -> str:
    return f"{count:,} {word}" + ("s" if count != 1 else "")


def _simulations(found: ClusterPlan) -> list[str]:
    lines = []
    for outcome in (found.own, found.best):
        if outcome is not None and outcome.simulated is not None:
            lines += _courses(outcome.name, outcome.simulated)
    return lines


def _courses(name: str, found: Courses) -> list[str]:
    (low, high), seconds = found.range, found.average("seconds")
    runs = "" if len(found.runs) == 1 else f" ({low:.1%} to {high:.1%} in {len(found.runs)} runs)"
    end = "" if all(run.finished for run in found.runs) else ", given up"
    failures, restarts = found.average("failures"), found.average("restarts")
    done, again = found.average("steps"), found.average("steps_lost")
    down = found.spent["down"] / seconds
    waits = f", {down:.1%} waiting for machines" if down else ""
    return [
        f"Simulated, {name}: goodput {found.goodput:.1%}{runs} over {duration(seconds)}{end};",
        f"  {rounded(failures)} failures, {rounded(restarts)} restarts, {rounded(again)} of "
        f"{rounded(done)} steps done again{waits}",
    ]


def _changes(found: ClusterPlan) -> list[str]:
    rows = [
        (
            changed.name,
            duration(changed.best.steps * found.cycle.whole_step),
            f"{changed.best.goodput:.1%}",
            f"{changed.own_goodput:.1%}" if found.own else "-",
        )
        for changed in found.changed
    ]
    return text_table(("if", "best interval", "goodput", "at the run's own"), rows, "lrrr")


def _verdict(found: ClusterPlan) -> list[str]:
    """Returns the lines on progress, batch, time and price."""
    cycle, nodes = found.cycle, found.pool.count
    lines = [""]
    if not found.makes_progress:
        needed = cycle.recovery + found.down + cycle.save_pause + cycle.save_write
        lines.append(
            f"No progress to speak of: a recovery and a save take {duration(needed)}, and a "
            f"failure comes every {duration(cycle.between_failures)}."
        )
    if nodes > 1 and found.fewer is not None and found.fewer < nodes - 1:
        lines.append(
            f"Of {nodes - 1:,} machines only {found.fewer:,} can keep the batch: it divides among "
            "no more."
        )
    for outcome in (found.own, found.best):
        if outcome is not None:
            lines += _whole(found, outcome)
    return lines if len(lines) > 1 else []


def _whole(found: ClusterPlan, outcome: IntervalOutcome) -> list[str]:
    plan, pace = found.plan, found.pace(outcome)
    assert plan.tokens_per_second is not None, "a cluster is planned with a speed only"
    speed = f"{outcome.name}: {short_count(pace * plan.tokens_per_second)} tokens/s on average"
    if not found.formula_holds:
        speed += f", {pace:.1%} of the undisturbed speed"
    seconds, cost = found.seconds(outcome), plan.cost
    if seconds is None or cost is None:
        return [speed]
    # A machine that waits for others costs as much as one that computes.
    hours = cost.devices * seconds / 3600
    money = "" if cost.price is None else f", {hours * cost.price:,.2f} at {cost.price:g} an hour"
    tokens = f"{short_count(cost.tokens)} tokens in {duration(seconds)}"
    return [speed, f"  {tokens}, {rounded(hours)} GPU-hours{money}"]
