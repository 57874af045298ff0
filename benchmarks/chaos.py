"""Disturbs a real job on several hosts, and tells what that costs and whether anything was lost.

    python -m benchmarks.chaos [--faults 20] [--steps 300] [--hosts 3] [--workers 2] [--seed 0]
                               [--fewest_hosts 2 --away_seconds 20]
                               [--rates kill_rank=3,cut_off=1] [--json FILE] [--folder DIR]

Torch's elastic agents, one a host, start the workers of a small run; hosts are network namespaces
where the system allows them. Faults of up to sixteen kinds strike it, each once the run trains on
after the one before; nobody helps it but a supervisor that starts agents again. In the end its
goodput is printed, what each kind has cost, and whether its weights are the bits of an undisturbed
run; where the number of ranks has changed (--fewest_hosts), whether its curve is equal within
rounding. Exit status 0: nothing was lost beyond the newest state, no step is missing or differs,
and the parts of its time are the whole.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.disturbance.faults import KINDS
from benchmarks.disturbance.figures import (
    curve_distance,
    faults_of_end,
    faults_of_time,
    kinds_table,
    restart_figures,
    run_figures,
    time_table,
)
from benchmarks.disturbance.injector import Injector, Outcome
from benchmarks.disturbance.job import Job, Shape
from benchmarks.disturbance.network import Network
from benchmarks.disturbance.scene import Scene
from benchmarks.kill_test import Disk, make_data
from rwkv_train.errors import ConfigError
from rwkv_train.goodput import goodput_line
from rwkv_train.report.run_lives import last_account

CTX_LEN = 32
SAVE_EVERY = 5
_LOG_TAIL_CHARACTERS = 3000


def job_flags(data: Path, proj_dir: Path, steps: int, ranks: int, dropout: float) -> list[str]:
    """Returns the flags of a small run that is saved every few steps."""
    flags = {
        **{"proj_dir": proj_dir, "data_file": data, "rwkv_version": 6, "strategy": "ddp"},
        **{"n_layer": 1, "n_embd": 32, "head_size": 32, "ctx_len": CTX_LEN, "micro_bsz": 2},
        **{"exit_tokens": 2 * steps * ranks * CTX_LEN, "epoch_steps": 50, "epoch_save": 1},
        **{"save_every_steps": SAVE_EVERY, "keep_last": 3, "keep_last_weights": 3},
        **{"save_retry_seconds": 0.5, "lr_init": "1e-3", "lr_final": "1e-4", "warmup_steps": 3},
        **{"dropout": dropout, "weight_decay": 0.1, "accelerator": "cpu", "precision": "fp32"},
        **{"num_workers": 0, "plot": 0, "report": 0, "wkv_backend": "chunked", "dist_timeout": 5},
    }
    return [word for key, value in flags.items() for word in (f"--{key}", str(value))]


def chosen_rates(text: str) -> dict[str, float]:
    """Returns the weight of every kind of fault; of those that are named, if any are.

    text: `kind=weight,...`. Raises ConfigError.
    """
    if not text:
        return {name: kind.weight for name, kind in KINDS.items()}
    rates = {}
    for word in text.split(","):
        name, _, weight = word.partition("=")
        try:
            rates[name] = float(weight or 1)
        except ValueError:
            rates[name] = -1.0
        if name not in KINDS or not 0 < rates[name] < float("inf"):
            raise ConfigError(
                f"--rates {word}: expected kind=weight with a weight above 0 and one of the kinds "
                f"{', '.join(KINDS)}"
            )
    return rates


def possible(rates: Mapping[str, float], network: Network, disk: Disk) -> dict[str, float]:
    """Returns the kinds that can be tried here; says which cannot, and why."""
    lacking = {"network": network.refusal, "disk": "" if disk.is_small else "no tmpfs"}
    for name in rates:
        if why := lacking.get(KINDS[name].needs):
            print(f"not tried: {name}: {why}")
    return {name: rate for name, rate in rates.items() if not lacking.get(KINDS[name].needs)}


def dealt(rates: Mapping[str, float], count: int, rng: random.Random) -> list[str]:
    """Returns so many kinds in random order, every one once before any comes by its weight."""
    kinds = list(rates)
    rng.shuffle(kinds)
    more = rng.choices(kinds, [rates[kind] for kind in kinds], k=max(0, count - len(kinds)))
    rng.shuffle(more)
    return [*kinds, *more][:count]


def chaos_parser() -> argparse.ArgumentParser:
    """Returns the parser of this program's flags."""
    parser = argparse.ArgumentParser(prog="benchmarks.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--hosts", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="of each host")
    parser.add_argument("--fewest_hosts", type=int, default=0, help="to go on with; 0: all")
    parser.add_argument("--away_seconds", type=float, default=0.5, help="that a lost host is away")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rates", default="", help="kind=weight,...; default: all kinds")
    parser.add_argument("--namespaces", type=int, default=1, help="0: all hosts are this one")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--folder", type=Path, help="an empty one; default: a temporary one")
    return parser


def main(argv: Sequence[str]) -> int:
    """Returns 0 when nothing was lost, 1 when something was, 2 for wrong flags."""
    parser = chaos_parser()
    options = parser.parse_args(argv)
    try:
        rates = chosen_rates(options.rates)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if min(options.faults, options.hosts, options.workers) < 1 or options.steps < 4:
        parser.error("--faults, --hosts and --workers must be at least 1, --steps at least 4")
    if not 0 <= options.fewest_hosts <= options.hosts or not options.away_seconds >= 0:
        parser.error("--fewest_hosts must be 0 to --hosts, --away_seconds at least 0")
    torch.set_num_threads(1)
    # So that what is made below is taken away then too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir=options.folder))
    network = Network(options.hosts, namespaces=bool(options.namespaces))
    disk = Disk(folder / "disk")
    try:
        faults = _try(options, rates, folder, network, disk)
        if faults:
            print("\n".join(["VIOLATED:", *faults, f"logs: {folder}/host-*.log"]))
            shutil.copytree(disk.folder / "run", folder / "run", dirs_exist_ok=True)
    finally:
        network.close()
        disk.close()
    # Removed only after a success: what a failure names must be there to be read.
    if not faults:
        shutil.rmtree(folder)
    return 1 if faults else 0


def _try(
    options: argparse.Namespace, rates: dict[str, float], folder: Path, network: Network, disk: Disk
) -> list[str]:
    """Returns what was lost."""
    ranks = options.hosts * options.workers
    fewest = options.fewest_hosts or options.hosts
    shape = Shape(options.hosts, options.workers, fewest, options.away_seconds)
    data, run = make_data(folder), disk.folder / "run"
    print(f"{options.hosts} x {options.workers} processes, {network}", flush=True)
    rng = random.Random(options.seed)
    # Beside the other, whose faults must not meet it: on links of its own.
    alone = Network(options.hosts, namespaces=False)
    # Other ranks would drop other activations.
    sizes = (options.steps, ranks, 0.1 if fewest == options.hosts else 0.0)
    whole = Job(alone, shape, job_flags(data, folder / "whole", *sizes), folder / "whole-logs")
    job = Job(network, shape, job_flags(data, run, *sizes), folder)
    scene = Scene(job, network, disk, run, options.hosts, 2 * ranks * CTX_LEN, rng)
    began = time.monotonic()
    injector = Injector(scene)
    try:
        whole.tend()
        outcomes = disturb(
            injector, dealt(possible(rates, network, disk), options.faults, rng), options.steps, rng
        )
        faults = [f"{o.kind}: {o.fault}" for o in outcomes if o.fault]
        faults += [ending] if not faults and (ending := injector.finish()) else []
        watched = time.monotonic() - began
        if not faults:
            wait_for_end(whole)
    finally:
        job.close()
        whole.close()
    return faults or _judge(options, scene, outcomes, watched, folder / "whole")


def wait_for_end(job: Job) -> None:
    """Tends a job that nobody disturbs until its end."""
    while not job.tend():
        time.sleep(0.1)


def disturb(
    injector: Injector, kinds: Sequence[str], steps: int, rng: random.Random
) -> list[Outcome]:
    """Returns what every fault has cost; ends at the first that something is wrong with."""
    # Each gets a little further; together they stay short of the end.
    reach = max(2, 2 * steps * 9 // 10 // (len(kinds) + 1) - 4)
    outcomes: list[Outcome] = []
    for number, kind in enumerate(kinds, 1):
        outcome = injector.strike(kind, rng.randint(1, reach))
        outcomes.append(outcome)
        went = "went on" if outcome.resumed is None else f"resumed at {outcome.resumed}"
        print(
            f"{number:3} at {outcome.at:7.1f} s {kind:<15} newest state {outcome.state:5}, {went}, "
            f"{outcome.lost} steps lost, {outcome.seconds:.1f} s {outcome.fault}",
            flush=True,
        )
        if outcome.fault:
            break
    return outcomes


def _judge(
    options: argparse.Namespace,
    scene: Scene,
    outcomes: Sequence[Outcome],
    watched: float,
    whole: Path,
) -> list[str]:
    """Prints the figures of a run that has ended; returns what was lost."""
    found = {**run_figures(scene.run, watched), **restart_figures(outcomes)}
    account = last_account(scene.run)
    print("\n".join([*kinds_table(outcomes), "", *time_table(found["seconds"])]))
    if account is not None:
        print(goodput_line(found["seconds"], account.lives, account.lost_steps))
    print(f"agents ended with status: {dict(scene.job.endings)}")
    if options.json:
        given = {"seed": options.seed, "save_every_steps": SAVE_EVERY}
        options.json.write_text(json.dumps({**given, **found}, indent=1))
    worlds = scene.job.worlds()
    print(f"started with ranks: {dict(worlds)}")
    same = len(worlds) == 1
    faults = faults_of_end(scene.run, whole, options.steps, scene.untold, scene.blackouts, same)
    faults += faults_of_time(scene.run, watched)
    if not faults:
        print(
            f"{len(outcomes)} faults of {len({o.kind for o in outcomes})} kinds in "
            f"{options.steps} steps: nothing lost beyond the newest state, "
            + (
                "final weights bitwise equal"
                if same
                else f"the curve equal within {curve_distance(scene.run, whole):.1g}"
            )
            + ", the parts of the time are the whole"
        )
    return faults


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
