"""The figures of a disturbed run, and what of its promises did not hold."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.disturbance.injector import Outcome
from rwkv_train.checkpoint.weights import load_weights
from rwkv_train.goodput import goodput, no_seconds
from rwkv_train.report.life_times import life_seconds
from rwkv_train.report.run_history import RunHistory
from rwkv_train.report.run_lives import last_account
from rwkv_train.report.run_records import read_metrics, read_times

FINAL = "rwkv-final.pth"
# Losses of another number of ranks are sums of the same numbers in another order.
ROUNDING = 2e-3
# What the parts of a run's time may miss of the time by the injector's clock: processes start
# before the first of them reads a clock, and end after the last of them has.
_UNSEEN_SECONDS = 10.0


def losses(folder: Path) -> dict[int, float]:
    """Returns step -> loss of a folder's metrics.jsonl."""
    return {r["step"]: r["loss"] for r in read_metrics(folder) if "loss" in r}


def curve_distance(run: Path, whole: Path) -> float:
    """Returns the largest difference of two runs' losses at the same step."""
    ours, theirs = losses(run), losses(whole)
    return max((abs(ours[n] - theirs[n]) for n in ours.keys() & theirs.keys()), default=0.0)


def destroyed_records(missing: set[int], untold: set[int], blackouts: Sequence[int]) -> set[int]:
    """Returns the steps among `missing` whose records the injector has destroyed.

    untold: those it knows. blackouts: steps done when the disk was full: what is missing without a
    break from there on, or from next to it, where a line is torn and the next one begins behind it.
    """
    found = missing & untold
    for done in blackouts:
        step = min(missing & set(range(done - 1, done + 4)), default=None)
        while step is not None and step in missing:
            found.add(step)
            step += 1
    return found


def faults_of_end(
    run: Path, whole: Path, steps: int, untold: set[int], blackouts: Sequence[int], same: bool
) -> list[str]:
    """Returns how a disturbed run ends otherwise than an undisturbed one.

    untold, blackouts: as `destroyed_records` takes them. same: the number of ranks never changed,
    so that weights must be equal bit for bit; else the curves within rounding.
    """
    faults = []
    if same:
        found, expected = load_weights(run / FINAL), load_weights(whole / FINAL)
        different = [key for key in expected if not torch.equal(found[key], expected[key])]
        if different:
            faults.append(f"{len(different)} of {len(expected)} tensors differ")
    numbers = [r["step"] for r in read_metrics(run) if "loss" in r]
    missing = set(range(steps)) - set(numbers)
    if missing := missing - destroyed_records(missing, untold, blackouts):
        faults.append(f"{len(missing)} steps have no record, {min(missing)} the first of them")
    if numbers != sorted(set(numbers)):
        faults.append("steps stand in metrics.jsonl twice, or out of order")
    limit, apart = 0.0 if same else ROUNDING, curve_distance(run, whole)
    if apart > limit:
        faults.append(f"losses differ by up to {apart:.2g}, where {limit:g} is rounding")
    return faults


def run_seconds(run: Path) -> dict[str, float]:
    """Returns the seconds of a run's life by part."""
    history = RunHistory(run)
    history.update()
    return life_seconds(history)


def faults_of_time(run: Path, watched_seconds: float) -> list[str]:
    """Returns where the parts of a run's time are not the whole.

    watched_seconds: of the run by the injector's clock.
    """
    account, seconds = last_account(run), run_seconds(run)
    if account is None:
        return ["the run kept no account of its time"]
    whole, told = sum(seconds.values()), account.until - account.began
    faults = []
    if abs(whole - told) > 1e-3 * told:
        faults.append(f"the parts of its time are {whole:.1f} s, its lives {told:.1f} s")
    if abs(watched_seconds - told) > _UNSEEN_SECONDS:
        faults.append(f"its lives are {told:.1f} s, and it was watched for {watched_seconds:.1f} s")
    return faults


def run_figures(run: Path, watched_seconds: float) -> dict[str, Any]:
    """Returns what a simulation of the run needs of its steps and saves, and has to come to.

    Seconds throughout. step_seconds, data_seconds: means of a step, with and of its wait for data;
    save_pause_seconds: of one save; reload_seconds: of one life. watched_seconds: of the run by the
    injector's clock.
    """
    steps = [r for r in read_metrics(run) if "loss" in r]
    seconds, account = run_seconds(run), last_account(run)
    alone = [r["seconds"] * (1 - r["save_share"] - r["validation_share"]) for r in steps]
    pauses = [r["seconds"] * r["save_share"] for r in steps if r["save_share"] > 0]
    started = [r["start_up_seconds"] for r in read_times(run) if "start_up_seconds" in r]
    return {
        "steps": len(steps),
        "step_seconds": _mean(alone),
        "data_seconds": _mean([r["seconds"] * r["data_share"] for r in steps]),
        "save_pause_seconds": _mean(pauses),
        "first_start_seconds": started[0] if started else 0.0,
        "reload_seconds": seconds["reload"] / max(1, account.lives - 1 if account else 0),
        "wall_seconds": watched_seconds,
        "seconds": seconds,
        "goodput": goodput(seconds),
    }


def restart_figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Returns what a simulation needs of the faults, and has to come to.

    restart_seconds: mean from a fault that ended a life until the next one trained on, with
    detection and reading; failure_times: of those faults, in seconds since the run began.
    """
    restarts = [o for o in outcomes if o.resumed is not None]
    return {
        "restart_seconds": _mean([o.seconds for o in restarts]),
        "failure_times": [o.at for o in restarts],
        "lost_steps": sum(o.lost for o in outcomes),
        "faults": [o._asdict() for o in outcomes],
    }


def kinds_table(outcomes: Sequence[Outcome]) -> list[str]:
    """Returns a line for each kind of fault: how often, restarts, steps lost, seconds."""
    lines = [f"{'fault':<15} {'times':>5} {'restarts':>8} {'lost steps':>10} {'median s':>8}"]
    for kind, count in sorted(Counter(o.kind for o in outcomes).items()):
        own = [o for o in outcomes if o.kind == kind]
        restarts = sum(o.resumed is not None for o in own)
        median = statistics.median(o.seconds for o in own)
        lost = sum(o.lost for o in own)
        lines.append(f"{kind:<15} {count:>5} {restarts:>8} {lost:>10} {median:>8.1f}")
    return lines


def time_table(seconds: Mapping[str, float]) -> list[str]:
    """Returns a line for each part of a run's time that is not nothing."""
    whole = sum(seconds.values())
    parts = {part: seconds.get(part, 0.0) for part in no_seconds()}
    return [f"{p:<15} {s:>9.1f} s {s / whole:>7.1%}" for p, s in parts.items() if s > 0]


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else 0.0
