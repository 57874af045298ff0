"""Changes of the pace of a resumed run: batch, mini-epochs and learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from rwkv_train.checkpoint.names import list_checkpoints
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.resume_differences import Change, Difference
from rwkv_train.config.resume_rules import Effect
from rwkv_train.config.run_length import global_batch, tokens_per_step, total_steps
from rwkv_train.config.rwkv_lm.warmup import read_warmup
from rwkv_train.config.versions import VERSIONS
from rwkv_train.training.optim.schedule import Schedule, learning_rate, make_schedule
from rwkv_train.training.progress import Progress

# Their product, divided by `context_parallel`, are the samples of a step.
_SIZES = ("micro_bsz", "accumulate_grad_batches", "devices", "num_nodes")
_BATCH = (*_SIZES, "context_parallel")
_RATE = ("lr_init", "lr_final", "warmup_steps", "exit_tokens", "epoch_count", "hold_epochs")


@dataclass(frozen=True)
class Pace:
    """Steps of both runs: where each stands, and what rate and mini-epochs it has.

    saved, progress: counters of the state, and the same place as this run counts.
    """

    saved: Progress
    progress: Progress
    schedule_before: Schedule
    schedule: Schedule
    values: Mapping[str, Any]
    config: ResolvedConfig

    @classmethod
    def of(
        cls,
        state: Mapping[str, Any],
        values: Mapping[str, Any],
        config: ResolvedConfig,
        progress: Progress,
    ) -> Pace:
        """Returns the pace of a state's run, with these leaf values, next to that of `config`."""
        floor = VERSIONS[config.model.rwkv_version].conventions.warmup_floor
        step_tokens = state.get("tokens_per_step", tokens_per_step(config))
        before = _schedule(values, step_tokens, floor)
        now = make_schedule(config, floor)
        return cls(Progress.from_dict(state), progress, before, now, values, config)


def batch_changes(pace: Pace, found: Sequence[Difference]) -> tuple[list[Change], tuple[str, ...]]:
    """Returns what another split or size of the batch means, and the names it accounts for."""
    differing = [difference for difference in found if difference.name in _BATCH]
    if not differing:
        return [], _BATCH
    before = prod(pace.values[name] for name in _SIZES) // pace.values["context_parallel"]
    now = global_batch(pace.config)
    drops = pace.config.model.dropout > 0 or pace.config.adapter.lora_dropout > 0
    effect = Effect.ROUNDING if before == now and not drops else Effect.COURSE
    if before == now:
        told = f"the same batches of {now:,} samples, summed in another order"
        told += ", and dropout drops other values" if drops else ""
    else:
        told = f"a step reads {now:,} samples, and read {before:,}"
    label = f"batch {now}" if before != now else ""
    return [Change(_names(differing), effect, f"{_told(differing)}: {told}", label)], _BATCH


def rate_changes(pace: Pace, found: Sequence[Difference]) -> tuple[list[Change], tuple[str, ...]]:
    """Returns what another schedule means at this step, and the names it accounts for."""
    differing = [difference for difference in found if difference.name in _RATE]
    if pace.schedule == pace.schedule_before or not differing:
        return [], _RATE
    saved, progress = pace.saved, pace.progress
    before = learning_rate(pace.schedule_before, saved.step, saved.step - saved.ramp_begin)
    now = learning_rate(pace.schedule, progress.step, progress.step - progress.ramp_begin)
    told = f"the rate after step {progress.step:,} is {now:.4g}, and would have been {before:.4g}"
    if any(difference.name == "exit_tokens" for difference in differing):
        steps = total_steps(pace.config)
        told += "; the run has no end" if steps is None else f"; the run has {steps:,} steps"
    label = ", ".join(f"{d.name} {d.now}" for d in differing)
    text = f"{_told(differing)}: {told}"
    return [Change(_names(differing), Effect.COURSE, text, label)], _RATE


def epoch_changes(pace: Pace, found: Sequence[Difference]) -> tuple[list[Change], tuple[str, ...]]:
    """Returns what mini-epochs of another length mean, and the names it accounts for."""
    names = ("epoch_steps",)
    differing = [difference for difference in found if difference.name in names]
    same = _epoch_tokens(pace.values["epoch_steps"], pace.schedule_before) == _epoch_tokens(
        pace.config.train.epoch_steps, pace.schedule
    )
    if same:
        return [], names
    changes = _written_over(pace)
    if not differing:
        return changes, names
    effect, text = Effect.TOLD, f"{differing[0]}: {differing[0].rule.says}"
    follows = pace.config.train.exit_tokens <= 0
    if follows and pace.schedule.decay_steps != pace.schedule_before.decay_steps:
        effect, text = Effect.COURSE, f"{text}, and the rate follows them"
    return [Change(names, effect, text, f"epoch_steps {differing[0].now}"), *changes], names


def _schedule(values: Mapping[str, Any], step_tokens: int, floor: float) -> Schedule:
    epoch_steps = values["epoch_steps"]
    warmup = values["warmup_steps"]
    return Schedule(
        lr_init=values["lr_init"],
        lr_final=values["lr_final"],
        tokens_per_step=step_tokens,
        exit_tokens=values["exit_tokens"],
        warmup_steps=None if warmup is None else read_warmup(warmup),
        warmup_floor=floor,
        decay_steps=(values["epoch_count"] or 0) * epoch_steps,
        hold_steps=values["hold_epochs"] * epoch_steps,
        weight_decay=values["weight_decay"],
        weight_decay_final=values["weight_decay_final"],
    )


def _written_over(pace: Pace) -> list[Change]:
    """Returns which numbered weights will be written over, because their numbers come again."""
    epoch = pace.progress.step // pace.config.train.epoch_steps
    found = list_checkpoints(pace.config.train.proj_dir)
    files = [path.name for number, path in reversed(found) if number >= epoch]
    if not files:
        return []
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    told = (
        f"mini-epochs have another length now: later ones of the same numbers write over "
        f"{', '.join(files[:3])}{more}"
    )
    return [Change(("epoch_steps",), Effect.TOLD, told, "")]


def _epoch_tokens(epoch_steps: int, schedule: Schedule) -> int:
    return epoch_steps * schedule.tokens_per_step


def _names(differing: Sequence[Difference]) -> tuple[str, ...]:
    return tuple(difference.name for difference in differing)


def _told(differing: Sequence[Difference]) -> str:
    shown = [
        d._replace(before=_shown(d.name, d.before), now=_shown(d.name, d.now)) for d in differing
    ]
    return ", ".join(map(str, shown))


def _shown(name: str, value: Any) -> Any:
    return read_warmup(value) if name == "warmup_steps" and value is not None else value
