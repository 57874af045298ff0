"""The arithmetic of docs/scaling.md up to 1000 machines: `python -m benchmarks.cluster_tables`.

Nothing is measured: rwkv-plan's functions are asked for every row, and what the store, the folder
of a state and the rings grow to is counted. The tables are written between marks of the document.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rwkv_train.config.load import load_config
from rwkv_train.planning.amounts import decimal_bytes, duration, short_count
from rwkv_train.planning.cards import find_card
from rwkv_train.planning.cluster.cluster_plan import ClusterPlan, ClusterWishes, make_cluster_plan
from rwkv_train.planning.cluster.goodput_formula import best_interval
from rwkv_train.planning.cluster.life_cycle import Storage, gathered_save
from rwkv_train.planning.link_traffic import Network
from rwkv_train.planning.plan import Device, Plan, Wishes, make_plan
from rwkv_train.planning.planned_run import imagined_run

DOCUMENT = Path(__file__).parents[1] / "docs" / "scaling.md"
MACHINES = (1, 8, 32, 128, 1000)
CARDS, CONTEXT = 8, 4096
# H100 with 400 Gbit/s a card, machines that fail every 1000 hours, a storage of 100 GB/s.
WISHES = ClusterWishes(
    mttf=3.6e6,
    storage=Storage(2e9, 100e9),
    restart=120.0,
    detect=15.0,
    spares=0,
    repair=0.0,
    least=None,
    seed=0,
)


class Model(NamedTuple):
    """A size; batch: tokens of a step that learning still profits from; samples: of a pass."""

    name: str
    batch: int
    samples: int
    grad_cp: bool


MODELS = (
    Model("0.1B", 1 << 19, 16, False),
    Model("1.5B", 1 << 21, 8, False),
    Model("7.2B", 1 << 22, 4, True),
    Model("14B", 1 << 22, 2, True),
)
LONG = {
    "shared, blocks recomputed": "--context_parallel 8 --grad_cp 1",
    "shared, in chunks of 16384": "--context_parallel 8 --grad_cp 1 --chunk_len 16384",
    "a sample each, in chunks of 16384": "--grad_cp 1 --chunk_len 16384",
}


def plan_of(line: str, model: str) -> Plan:
    """Returns the plan of a command line of rwkv-plan on H100."""
    card = find_card("h100")
    assert card is not None, "a row of the table"
    config, _ = imagined_run(load_config(line.split()), model=model, tokens=None, has_bf16=True)
    return make_plan(config, Device(card, card.memory), Wishes())


def flags_for(model: Model, machines: int) -> str:
    """Returns the flags with which so many machines share the batch; samples are shared last."""
    cards, wanted = machines * CARDS, model.batch // CONTEXT
    shared = next((n for n in (1, 2, 4, 8) if cards // n <= wanted), 8)
    each = max(1, wanted * shared // cards)
    size = next(n for n in range(min(model.samples, each), 0, -1) if each % n == 0)
    flags = f"--micro_bsz {size}"
    flags += f" --accumulate_grad_batches {each // size}" if each > size else ""
    flags += f" --context_parallel {shared}" if shared > 1 else ""
    return flags + (" --grad_cp 1" if model.grad_cp else "")


def cluster_of(model: Model, machines: int) -> ClusterPlan:
    """Returns the plan of a size on so many machines that fail."""
    line = f"--ctx_len {CONTEXT} --devices {CARDS} --num_nodes {machines} "
    line += "--strategy deepspeed_stage_2 "
    return make_cluster_plan(plan_of(line + flags_for(model, machines), model.name), WISHES)


def machine_rows() -> list[list[str]]:
    """Returns the rows of speeds and of goodput, by size and machines."""
    return [_machine_row(model, machines) for model in MODELS for machines in MACHINES]


def _machine_row(model: Model, machines: int) -> list[str]:
    found = cluster_of(model, machines)
    step, cycle, best = found.plan.step, found.cycle, found.best
    assert step is not None and best is not None, "an H100 in bf16, whose machines fail"
    whole = gathered_save(found.save.size, WISHES.storage)
    times = {"save_pause": whole.pause, "save_write": whole.write, "reload": whole.reload}
    alone = best_interval(replace(cycle, **times))
    assert alone is not None, "machines fail"
    waits = (step.links + step.context) / step.seconds
    return [
        model.name,
        f"{machines:,}",
        f"`{flags_for(model, machines)}`",
        short_count(step.tokens),
        duration(step.seconds),
        f"{waits:.0%}",
        f"{step.mfu:.0%}",
        short_count(step.tokens_per_second),
        duration(cycle.between_failures),
        duration(cycle.save_pause),
        duration(cycle.save_write),
        duration(best.interval.steps * cycle.whole_step),
        f"{best.interval.goodput:.2%}",
        f"{alone.goodput:.2%}",
    ]


MACHINE_HEAD = (
    *("model", "machines", "flags", "tokens a step", "step", "waiting", "MFU", "tokens/s"),
    *("a failure every", "pause", "complete after", "best interval", "goodput"),
    "goodput, one process writes",
)


def long_rows() -> list[list[str]]:
    """Returns the rows of samples of 2^20 tokens on eight H100."""
    rows = []
    for model in ("1.5B", "7.2B", "14B"):
        for name, flags in LONG.items():
            line = f"--ctx_len 1048576 --micro_bsz 1 --devices 8 {flags}"
            plan = plan_of(f"{line} --strategy deepspeed_stage_2", model)
            step, share = plan.step, plan.share
            assert step is not None and share is not None, "an H100 in bf16"
            rows.append(
                [
                    *(model, name, f"`{flags}`", short_count(step.tokens)),
                    *(f"{plan.memory.total / 2**30:,.0f} GiB", "yes" if share < 0.9 else "no"),
                    *(duration(step.seconds), short_count(step.tokens_per_second)),
                    f"{step.context / step.seconds:.2%}",
                ]
            )
    return rows


LONG_HEAD = (
    *("model", "tokens", "flags", "tokens a step", "memory a card", "fits", "step", "tokens/s"),
    "waiting for context",
)


def growth_rows() -> list[list[str]]:
    """Returns the rows of what grows with the ranks, under 14B of parameters."""
    model = MODELS[-1]
    parameters = cluster_of(model, 1).plan.parameters.total
    # Gradients and weights travel once each, in buckets of 200 million elements.
    calls = 2 * -(-parameters // 200_000_000)
    rows = []
    for machines in MACHINES:
        ranks = machines * CARDS
        network = Network(450e9, 400e9, CARDS, machines)
        step = cluster_of(model, machines).cycle.step
        rows.append(
            [
                f"{ranks:,}",
                # Every second: a beat is told and a fault asked for by all, all are read by two.
                *(f"{2 * ranks:,}", f"{4 * ranks:,}"),
                # One for training, one for the watch, one for the saves.
                f"{3 * ranks:,}",
                f"{ranks:,}",
                decimal_bytes(12 * parameters / ranks),
                *(duration(network.ring_latency), duration(network.tree_latency)),
                f"{calls * network.ring_latency / step:.1%}",
            ]
        )
    return rows


GROWTH_HEAD = (
    *(
        "ranks",
        "requests/s at the store",
        "keys/s read by judges",
        "connections",
        "parts of a state",
    ),
    *("a part, 14B", "a ring's latency", "a tree's", "rings' latency in a step"),
)
TABLES = {
    "machines": (MACHINE_HEAD, machine_rows),
    "long": (LONG_HEAD, long_rows),
    "growth": (GROWTH_HEAD, growth_rows),
}


def with_tables(text: str) -> str:
    """Returns the text of docs/scaling.md with its tables as they are now between their marks."""
    for name, (head, rows) in TABLES.items():
        lines = [head, ["---"] * len(head), *rows()]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        marks = rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- end of {name} -->)"
        text, count = re.subn(marks, rf"\g<1>{table}\n\g<2>", text, flags=re.DOTALL)
        assert count == 1, f"{DOCUMENT} has lost the marks of the table {name}"
    return text


def main() -> None:
    """Writes the tables into the document."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
