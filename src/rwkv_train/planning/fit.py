"""Settings with which a run fits into a memory, the best first.

Better is what trains more (everything before adapters before states), and of that what is faster by
`planning.step_time`.  Batches stay what they were: a smaller micro batch is accumulated.  A setting
that was given stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rwkv_train.config.check.field_rules import check_fields
from rwkv_train.config.choices import Strategy
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.run_length import window_len
from rwkv_train.config.schema import RunConfig, TrainConfig
from rwkv_train.errors import ConfigError
from rwkv_train.planning.cards import Card
from rwkv_train.planning.memory import MemoryPlan, memory_plan
from rwkv_train.planning.plan import UNCERTAIN
from rwkv_train.planning.smaller_settings import with_fields
from rwkv_train.planning.step_time import StepTime, step_time

_TYPES = ("all", "lora", "states")
_ALONE: tuple[Strategy, ...] = ("auto", "deepspeed_stage_2_offload")
_TOGETHER: tuple[Strategy, ...] = (
    "ddp",
    "deepspeed_stage_1",
    "deepspeed_stage_2",
    "deepspeed_stage_3",
    "deepspeed_stage_2_offload",
    "deepspeed_stage_3_offload",
)
# Of what trains most, and of everything else.
_SHOWN, _SHOWN_OTHERS = 3, 1
_CHUNKS = (4096, 1024, 256)
_HEAD_ROWS = 512
# Below it the strategy that divides less wins, whose links have less to do.
_CLEARLY_FASTER = 1.03
# A rank that adapters are usually trained with, as configs/lora.yaml.
_LORA_RANK = 32


@dataclass(frozen=True)
class Fitting:
    """A run that fits.

    changes: fields by name that differ from what was given, as flags.  step: None in fp32.
    """

    config: ResolvedConfig
    changes: Mapping[str, Any]
    memory: MemoryPlan
    step: StepTime | None

    @property
    def flags(self) -> str:
        """The changes as words of a command line; what a base model is called is left open."""
        words = [f"--{name} {_word(value)}" for name, value in self.changes.items()]
        needs_model = "train_type" in self.changes and self.config.train.load_model is None
        return " ".join([*words, *(["--load_model BASE.pth"] if needs_model else [])])

    @property
    def speed(self) -> float:
        """Tokens per second; 0 where it is not known."""
        return 0.0 if self.step is None else self.step.tokens_per_second


def fitting_runs(
    given: RunConfig, start: Mapping[str, ResolvedConfig], card: Card, memory: int
) -> list[Fitting]:
    """Returns the best runs that fit into `memory` bytes a device, the best first.

    Of what trains most some that save activations differently, of everything else one.

    given: what the user asked for, without gaps that a plan cannot have.  start: strategy as on the
    command line -> the run under it (`strategies_of`).  card: by whose numbers runs are ordered.
    """
    found: list[Fitting] = []
    for kind in _kinds(given.train):
        best: dict[tuple[bool, bool], Fitting] = {}
        for strategy, config in start.items():
            # An offloaded optimizer waits for the host: only where nothing else trains everything.
            if strategy.endswith("_offload") and (kind != "all" or best):
                continue
            for run in _runs(given, config, strategy, kind, card, memory):
                train = run.config.train
                key = (train.grad_cp, train.chunk_len is not None)
                if key not in best or run.speed > _CLEARLY_FASTER * best[key].speed:
                    best[key] = run
        ordered = sorted(_worthwhile(list(best.values())), key=lambda run: -run.speed)
        found += ordered[: _SHOWN_OTHERS if found else _SHOWN]
    return found


def strategy_names(given: RunConfig, devices: int, accelerator: str) -> tuple[Strategy, ...]:
    """Returns the strategies that may be tried: the one that was given, else all that there are."""
    if given.hardware.strategy != "auto":
        return (given.hardware.strategy,)
    names = _ALONE if devices == 1 else _TOGETHER
    return tuple(name for name in names if accelerator == "gpu" or "offload" not in name)


def _worthwhile(runs: list[Fitting]) -> list[Fitting]:
    """Returns the runs that no other one beats in both speed and memory."""
    return [
        run
        for run in runs
        if not any(
            other.speed > run.speed and other.memory.total <= run.memory.total for other in runs
        )
    ]


def _kinds(train: TrainConfig) -> tuple[str, ...]:
    return _TYPES if train.train_type == "all" else (train.train_type,)


def _runs(
    given: RunConfig, config: ResolvedConfig, strategy: str, kind: str, card: Card, memory: int
) -> Iterator[Fitting]:
    """Yields the run with the largest micro batch that fits, of every way to save activations."""
    common: dict[str, Any] = {}
    if strategy != given.hardware.strategy:
        common["strategy"] = strategy
    if kind != given.train.train_type:
        common["train_type"] = kind
        if kind == "lora":
            common["lora_r"] = _LORA_RANK
    base = with_fields(config, {k: v for k, v in common.items() if k != "strategy"})
    if kind != given.train.train_type and not _is_allowed(base):
        return
    for saving in _savings(given, config):
        found = _largest(with_fields(base, saving), memory)
        if found is None and given.hardware.head_chunk is None:
            saving = {**saving, "head_chunk": _HEAD_ROWS}
            found = _largest(with_fields(base, saving), memory)
        if found is None:
            continue
        run, plan = found
        batch = {
            name: getattr(run.train, name)
            for name in ("micro_bsz", "accumulate_grad_batches")
            if getattr(run.train, name) != getattr(given.train, name)
        }
        yield Fitting(run, {**common, **saving, **batch}, plan, step_time(run, card))


def _savings(given: RunConfig, config: ResolvedConfig) -> Iterator[dict[str, Any]]:
    """Yields what may be recomputed, the least first."""
    train = given.train
    again = [{}] if train.grad_cp else [{}, {"grad_cp": True}]
    yield from again
    if train.chunk_len is not None or config.model.head_qk:
        return
    lengths = [length for length in _CHUNKS if length < window_len(config)]
    for length in lengths:
        yield {"chunk_len": length}
    if lengths and not train.grad_cp:
        yield {"chunk_len": lengths[-1], "grad_cp": True}


def _largest(config: ResolvedConfig, memory: int) -> tuple[ResolvedConfig, MemoryPlan] | None:
    """Returns the run with the largest micro batch that fits for certain; None: not even one."""
    train = config.train
    batch = train.micro_bsz * train.accumulate_grad_batches
    sizes = [size for size in range(1, batch + 1) if batch % size == 0]
    # Usually the whole batch fits, or not even one sample.
    order = [len(sizes) - 1, 0]
    low, high = -1, len(sizes)
    found = None
    while high - low > 1:
        tried = order.pop(0) if order else (low + high) // 2
        size = sizes[tried]
        run = with_fields(config, {"micro_bsz": size, "accumulate_grad_batches": batch // size})
        plan = memory_plan(run)
        if plan.total <= (1 - UNCERTAIN) * memory:
            low, found = tried, (run, plan)
        else:
            high = tried
    return found


def _is_allowed(config: ResolvedConfig) -> bool:
    try:
        check_fields(config.as_given())
    except ConfigError:
        return False
    return True


def _word(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)
