"""Verifies item by item, in the order in which faults explain one another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch

from rwkv_train.config.versions import VERSIONS
from rwkv_train.verification.check_model import check_model_ways
from rwkv_train.verification.check_operators import check_operator
from rwkv_train.verification.check_run import check_bits, check_run
from rwkv_train.verification.golden_file import golden
from rwkv_train.verification.item_names import BITS, MODEL, OPERATORS, RUN
from rwkv_train.verification.outcomes import Outcome, Part

# Small tensors gain nothing from more, and a second one shows sums that depend on their number.
_THREADS = 2


class ChosenItems(NamedTuple):
    """The items that are asked for, and where they are to run.

    only: names of items; empty: all.  quick: fewer calls, two float types, no run for its bits.
    devices: "cpu", "cuda" or both.
    """

    only: Sequence[str] = ()
    quick: bool = False
    devices: Sequence[str] = ("cpu",)


class Step(NamedTuple):
    """An item that is still to be verified."""

    item: str
    check: Callable[[], Part]


def steps_of(plan: ChosenItems) -> list[Step]:
    """Returns what a plan asks for, in order."""
    steps = []
    for device in plan.devices:
        steps += _on_device(plan, device)
    return [step for step in steps if not plan.only or step.item in plan.only]


def verified(steps: Sequence[Step]) -> Iterator[Part]:
    """Yields what was found out about every item."""
    threads = torch.get_num_threads()
    torch.set_num_threads(min(threads, _THREADS))
    try:
        for step in steps:
            yield _outcome(step)
    finally:
        torch.set_num_threads(threads)


def _outcome(step: Step) -> Part:
    """Returns what was found out about an item; an error is a fault of it, and ends no other."""
    try:
        return step.check()
    except Exception as error:
        fault = f"{type(error).__name__}: {error}".splitlines()[0]
        return Part(step.item, (Outcome(step.item, "–", "–", "the check itself", "", fault=fault),))


def _on_device(plan: ChosenItems, name: str) -> list[Step]:
    stored, device = golden(), torch.device(name)
    accelerator = "cpu" if name == "cpu" else "gpu"
    steps = [
        Step(op, partial(check_operator, op, device, stored["operators"].get(op, {}), plan.quick))
        for op in OPERATORS
    ]
    for version in VERSIONS:
        run = stored["runs"].get(version, {})
        # A card's kernels have no fp64, and its bits are nobody's promise.
        if name == "cpu":
            steps.append(Step(f"{MODEL}{version}", partial(check_model_ways, version)))
        steps.append(Step(f"{RUN}{version}", partial(check_run, version, run, accelerator)))
        if name == "cpu" and not plan.quick:
            steps.append(Step(f"{BITS}{version}", partial(check_bits, version, run)))
    # The operators first, then every version's network, then runs: a fault shows in all behind it.
    return sorted(steps, key=lambda step: step.item not in OPERATORS)
