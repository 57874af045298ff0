"""The figures of a disturbed run, and what of its promises did not hold."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.chaos.injector import Outcome
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


def faults_of_end(run: Path, whole: Path, steps: int, untold: set[int], same: bool) -> list[str]:
    """Returns how a disturbed run ends otherwise than an undisturbed one.

    untold: steps whose records the injector has destroyed. same: the number of ranks never changed,
    so that weights must be equal bit for bit; else the curves within rounding.
    """
    faults = []
    if same:
        found, expected = load_weights(run / FINAL), load_weights(whole / FINAL)
        different = [key for key in expected if not torch.equal(found[key], expected[key])]
        if different:
            faults.append(f"{len(different)} of {len(expected)} tensors differ")
    numbers = [r["step"] for r in read_metrics(run) if "loss" in r]
    if missing := set(range(steps)) - set(numbers) - untold:
        faults.append(f"{len(missing)} steps have no record, {min(missing)} the first of them")
    if numbers != sorted(set(numbers)):
        faults.append("steps stand in metrics.jsonl twice, or out of order")
    ours, theirs = losses(run), losses(whole)
    limit = 0.0 if same else ROUNDING
    apart = max(abs(ours[step] - theirs[step]) for step in ours.keys() & theirs.keys())
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


def figures(
    run: Path, outcomes: Sequence[Outcome], watched_seconds: float, save_every: int
) -> dict[str, Any]:
    """Returns what a simulation of the run needs, and what it has to come to; seconds throughout.

    step_seconds: of a step alone. save_pause_seconds: of one save. restart_seconds: median from a
    fault that ends a life until the next trains on, detection and reading included.
    """
    steps = [r for r in read_metrics(run) if "loss" in r]
    restarts = [o for o in outcomes if o.resumed is not None]
    seconds = run_seconds(run)
    alone = [r["seconds"] * (1 - r["save_share"] - r["validation_share"]) for r in steps]
    pauses = [r["seconds"] * r["save_share"] for r in steps if r["save_share"] > 0]
    return {
        "steps": len(steps),
        "save_every_steps": save_every,
        "step_seconds": statistics.fmean(alone) if alone else 0.0,
        "save_pause_seconds": statistics.fmean(pauses) if pauses else 0.0,
        "restart_seconds": statistics.median([o.seconds for o in restarts]) if restarts else 0.0,
        "mean_restart_seconds": (
            statistics.fmean([o.seconds for o in restarts]) if restarts else 0.0
        ),
        "first_start_seconds": _first_start(run),
        "failure_times": [o.at for o in restarts],
        "faults": [o._asdict() for o in outcomes],
        "lost_steps": sum(o.lost for o in outcomes),
        "wall_seconds": watched_seconds,
        "seconds": seconds,
        "goodput": goodput(seconds),
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


def _first_start(run: Path) -> float:
    return next((r["start_up_seconds"] for r in read_times(run) if "start_up_seconds" in r), 0.0)
