"""Changes of flags with which a run needs less memory, the cheapest first.

A cost is a guess of how much slower a step becomes, or how far training is from what was asked for:
it orders the suggestions and is shown to nobody. That they fit is worked out, not guessed.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.planning.memory import MemoryPlan, memory_plan

# What a setting has to save to be worth its flag: three hundredths.
_LEAST_SAVING = 0.97
# By which a micro batch is divided; and by itself.
_TIMES_SMALLER = (2, 3, 4, 6, 8, 16, 32)
# Settings that are changed at once, unless all are.
_MOST_CHANGES = 3


class SmallerRun(NamedTuple):
    """Flags, as on a command line, the run with them, and what it then takes."""

    flags: str
    config: ResolvedConfig
    plan: MemoryPlan


class _Option(NamedTuple):
    """Fields with their new values, and the cost of the change."""

    fields: Mapping[str, Any]
    cost: float


def smaller_runs(
    config: ResolvedConfig,
    fits: Callable[[ResolvedConfig, MemoryPlan], bool],
    allowed: Callable[[ResolvedConfig], bool] = lambda config: True,
    count: int = 3,
) -> list[SmallerRun]:
    """Returns the cheapest changes after which the run fits, none of them more than it takes.

    fits: tells whether a plan does.  allowed: whether the flags of a configuration go together.
    """
    axes = [options for options in _axes(config) if _helps(config, options)]
    found: list[SmallerRun] = []
    changed: list[frozenset[str]] = []
    for fields in _combinations(axes):
        names = frozenset(fields)
        # Not those with which one of fewer changes, or of gentler ones, fits already.
        if any(known <= names for known in changed):
            continue
        other = with_fields(config, fields)
        plan = memory_plan(other)
        if fits(other, plan) and allowed(other):
            found.append(SmallerRun(_flags(fields), other, plan))
            changed.append(names)
        if len(found) == count:
            break
    return found


def _combinations(axes: list[list[_Option]]) -> Iterator[dict[str, Any]]:
    """Yields the changes to try: of few settings, the cheapest first; then all, to the utmost."""
    few = (
        chosen
        for changes in range(1, _MOST_CHANGES + 1)
        for some in itertools.combinations(axes, changes)
        for chosen in itertools.product(*some)
    )
    tried = sorted(few, key=lambda chosen: sum(option.cost for option in chosen))
    for chosen in (*tried, tuple(options[-1] for options in axes)):
        yield {name: value for option in chosen for name, value in option.fields.items()}


def with_fields(config: ResolvedConfig, fields: Mapping[str, Any]) -> ResolvedConfig:
    """Returns the configuration with these leaf fields changed, in whichever section they are."""
    changed = {}
    for section in dataclasses.fields(config):
        value = getattr(config, section.name)
        own = {name: new for name, new in fields.items() if hasattr(value, name)}
        if own:
            changed[section.name] = dataclasses.replace(value, **own)
    return dataclasses.replace(config, **changed)


def _helps(config: ResolvedConfig, options: list[_Option]) -> bool:
    before = memory_plan(config).allocated
    return any(
        memory_plan(with_fields(config, option.fields)).allocated < _LEAST_SAVING * before
        for option in options
    )


def _axes(config: ResolvedConfig) -> Iterator[list[_Option]]:
    """Yields the alternatives of every setting that may be changed."""
    yield _strategies(config)
    yield _saves(config)
    yield _head_slices(config)
    yield _micro_batches(config)
    yield _precisions(config)
    if not config.train.grad_cp:
        yield [_Option({"grad_cp": True}, 0.33)]
    yield _chunks(config)
    yield _train_types(config)


def _strategies(config: ResolvedConfig) -> list[_Option]:
    hardware = config.hardware
    if hardware.devices * hardware.num_nodes == 1 or config.optim.optimizer == "adam8bit":
        return []
    names = ("deepspeed_stage_1", "deepspeed_stage_2", "deepspeed_stage_3")
    now = hardware.strategy
    stage = next((n + 1 for n, name in enumerate(names) if now.startswith(name)), 0)
    # Under DeepSpeed 16-bit weights have masters, without autocast.
    sixteen = hardware.precision in ("bf16", "fp16")
    more = {"autocast": False} if sixteen and stage == 0 else {}
    return [
        _Option({"strategy": name, **more}, 0.02 + 0.04 * number)
        for number, name in enumerate(names)
        if number >= stage
    ]


def _saves(config: ResolvedConfig) -> list[_Option]:
    """Returns what spares the copies that are written while training goes on."""
    if not config.safety.save_in_background:
        return []
    return [_Option({"save_in_background": False}, 0.03)]


def _head_slices(config: ResolvedConfig) -> list[_Option]:
    now = config.hardware.head_chunk
    rows = [rows for rows in (2048, 512, 128) if now is None or rows < now]
    return [_Option({"head_chunk": rows}, 0.02 * (number + 1)) for number, rows in enumerate(rows)]


def _micro_batches(config: ResolvedConfig) -> list[_Option]:
    """Returns smaller micro batches, accumulated to the same batches."""
    train = config.train
    found = []
    for times in dict.fromkeys((*_TIMES_SMALLER, train.micro_bsz)):
        if 1 < times <= train.micro_bsz and train.micro_bsz % times == 0:
            fields = {
                "micro_bsz": train.micro_bsz // times,
                "accumulate_grad_batches": train.accumulate_grad_batches * times,
            }
            # A step of few samples uses the machine less well.
            found.append(_Option(fields, 0.05 + 0.02 * times))
    return found


def _precisions(config: ResolvedConfig) -> list[_Option]:
    hardware = config.hardware
    if hardware.precision not in ("fp32", "tf32"):
        return []
    zero = hardware.strategy.startswith("deepspeed")
    alone = hardware.accelerator == "gpu" and hardware.strategy == "single_device"
    masters = zero or (alone and config.optim.optimizer == "adamw")
    return [_Option({"precision": "bf16", "autocast": not masters}, 0.3)]


def _chunks(config: ResolvedConfig) -> list[_Option]:
    train = config.train
    if train.bptt_chunks is not None or config.model.head_qk:
        return []
    longest = train.chunk_len or config.data.ctx_len
    lengths = [length for length in (4096, 1024, 256) if length < longest]
    return [
        _Option({"chunk_len": length}, 0.4 + 0.02 * number) for number, length in enumerate(lengths)
    ]


def _train_types(config: ResolvedConfig) -> list[_Option]:
    """Returns what trains less, where there are weights that it could adapt."""
    if config.train.train_type != "all" or config.train.load_model is None:
        return []
    return [_Option({"train_type": "lora"}, 3.0), _Option({"train_type": "states"}, 4.0)]


def _flags(fields: Mapping[str, Any]) -> str:
    # Autocast follows from precision and strategy.
    shown = {name: value for name, value in fields.items() if name != "autocast"}
    return " ".join(
        f"--{name} {int(value) if isinstance(value, bool) else value}"
        for name, value in shown.items()
    )
