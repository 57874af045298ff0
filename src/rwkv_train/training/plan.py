"""How long a run lasts: pure arithmetic on the resolved configuration."""

from __future__ import annotations

from dataclasses import dataclass

from rwkv_train.config.resolve.length import global_batch, tokens_per_step, total_steps
from rwkv_train.config.run_length import windows_per_row
from rwkv_train.config.schema import RunConfig
from rwkv_train.training.optim.schedule import Schedule


@dataclass(frozen=True)
class Plan:
    """Length of the run in optimizer steps, counted from its very start.

    total_steps: None for a run without an end.
    completes: reaching total_steps finishes the run (rwkv-final.pth is written); otherwise the
    run only pauses there (--max_steps, --exit_epoch) and is saved like a mini-epoch.
    reason: what ends it, for people.
    batch_samples: samples that a step reads, whole or one of their `windows`.
    """

    tokens_per_step: int
    epoch_steps: int
    total_steps: int | None
    completes: bool
    reason: str
    batch_samples: int
    windows: int = 1

    def samples(self, step: int) -> tuple[int, int]:
        """Global numbers of the first and the last sample that `step` reads from."""
        first = step // self.windows * self.batch_samples
        return first + 1, first + self.batch_samples


def make_plan(config: RunConfig) -> Plan:
    """The plan of a resolved configuration."""
    t = config.train
    ends: list[tuple[int, bool, str]] = []
    steps = total_steps(config)
    if steps is not None:
        ends.append(
            (
                steps,
                True,
                f"the budget of {abs(t.exit_tokens):,} tokens"
                if t.exit_tokens
                else f"{t.epoch_count} mini-epochs",
            )
        )
    if t.exit_epoch is not None:
        ends.append(((t.exit_epoch + 1) * t.epoch_steps, False, f"--exit_epoch {t.exit_epoch}"))
    if t.max_steps is not None:
        ends.append((t.max_steps, False, f"--max_steps {t.max_steps}"))
    # At equal length finishing wins over pausing.
    steps, completes, reason = min(
        ends, key=lambda end: (end[0], not end[1]), default=(None, False, "nothing but you")
    )
    return Plan(
        tokens_per_step(config),
        t.epoch_steps,
        steps,
        completes,
        reason,
        global_batch(config),
        windows_per_row(config),
    )


def make_schedule(config: RunConfig, warmup_floor: float) -> Schedule:
    """The rate and decay curves of a resolved configuration."""
    o, t = config.optim, config.train
    return Schedule(
        lr_init=o.lr_init,
        lr_final=o.lr_final,
        tokens_per_step=tokens_per_step(config),
        exit_tokens=t.exit_tokens,
        warmup_steps=o.warmup_steps,
        warmup_floor=warmup_floor,
        decay_steps=(t.epoch_count or 0) * t.epoch_steps,
        hold_steps=o.hold_epochs * t.epoch_steps,
        weight_decay=o.weight_decay,
        weight_decay_final=o.weight_decay_final,
    )
