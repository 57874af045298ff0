"""Adds up a profile by what things are in words, the largest first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from rwkv_train.training.profiling.operator_words import (
    COMMUNICATION,
    OTHER_PRODUCTS,
    OperatorWords,
)

# Purposes of the run's clock -> the ranges of a profile.
PAUSE_WORDS = {"data": "waiting for data", "save": "saving", "validation": "validation and samples"}
LOOP, IDLE = "Python and the loop", "the card waits for the host"
WAITING = "waiting for other ranks"
AUTOGRAD = "autograd and small operators"
STEP = "ProfilerStep"
_SMALL = ("element by element", "copies", OTHER_PRODUCTS)
_MADE_UP = ("wkv", "optimizer", "norm of the gradients")
LARGEST = 10


class ProfileItem(NamedTuple):
    """A thing that takes time: microseconds in all steps, and how often it was called."""

    words: str
    microseconds: float
    calls: int


class Profiled(NamedTuple):
    """A profile added up: `steps` of them, the microseconds they took, and the items."""

    steps: int
    microseconds: float
    items: list[ProfileItem]


def add_up(
    events: Iterable[Any], words: OperatorWords, *, on_gpu: bool, waited_seconds: float
) -> Profiled:
    """Returns a profile by items, largest first; what no operator took is an item too.

    events: torch's, of all threads. On a GPU items are the card's time, but for pauses, which are
    the host's. waited_seconds: for other ranks, on a CPU.
    """
    found = list(events)
    steps = [event for event in found if event.name.startswith(STEP) and not _is_device(event)]
    whole = float(sum(event.cpu_time_total for event in steps))
    main = {event.thread for event in steps}
    times: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for event in found:
        if _is_device(event) or event.name.startswith(STEP):
            continue
        if event.name in PAUSE_WORDS.values():
            times[event.name] += event.cpu_time_total
            calls[event.name] += 1
            continue
        # Of a card all threads count: the backward pass has one of its own.
        if _is_paused(event) or not (on_gpu or event.thread in main):
            continue
        label, is_own = _label(event, words)
        if label == COMMUNICATION and not on_gpu:
            continue
        times[label] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
        calls[label] += int(is_own)
    if waited_seconds > 0 and not on_gpu:
        times[WAITING] += waited_seconds * 1e6
    rest = whole - sum(times.values())
    if rest > 0:
        times[IDLE if on_gpu else LOOP] += rest
    items = [ProfileItem(name, time, calls[name]) for name, time in times.items() if time > 0]
    return Profiled(len(steps), whole, sorted(items, key=lambda item: -item.microseconds))


def write_table(profiled: Profiled, heading: str) -> str:
    """Returns the largest items as lines of text, and all others in one."""
    steps = max(profiled.steps, 1)
    whole = max(profiled.microseconds, 1e-9)
    lines = [heading, f"{'ms a step':>12}{'share':>9}{'calls':>9}"]
    shown, others = profiled.items[:LARGEST], profiled.items[LARGEST:]
    if others:
        rest = ProfileItem(
            f"{len(others)} smaller items",
            sum(item.microseconds for item in others),
            sum(item.calls for item in others),
        )
        shown = [*shown, rest]
    for item in shown:
        calls = f"{item.calls / steps:,.0f}" if item.calls else ""
        lines.append(
            f"{item.microseconds / 1e3 / steps:>12,.2f}{item.microseconds / whole:>9.1%}"
            f"{calls:>9}  {item.words}"
        )
    return "\n".join(lines) + "\n"


def _label(event: Any, words: OperatorWords) -> tuple[str, bool]:
    """Returns the words for an event, its caller's where they say more, and whether its own."""
    own = words.of(event.name, _shapes(event))
    if not own or own.startswith(_SMALL):
        # Larger ones are made up of such.
        for caller in _callers(event):
            outer = words.of(caller.name, _shapes(caller))
            if outer.startswith(_MADE_UP):
                return outer, False
    if own:
        return own, True
    # Ranges around Python's own work have names without a space of operators.
    return (AUTOGRAD if "::" in event.name else LOOP), False


def _shapes(event: Any) -> Sequence[Sequence[int]]:
    return [shape for shape in event.input_shapes or () if isinstance(shape, (list, tuple))]


def _is_paused(event: Any) -> bool:
    return any(caller.name in PAUSE_WORDS.values() for caller in _callers(event))


def _callers(event: Any) -> Iterator[Any]:
    """Yields the events that an event lies in, from the inside out."""
    caller = event.cpu_parent
    while caller is not None:
        yield caller
        caller = caller.cpu_parent


def _is_device(event: Any) -> bool:
    return str(event.device_type).rpartition(".")[2] != "CPU"
