"""Resolves the number of warmup steps of a run."""

from __future__ import annotations

from rwkv_train.config.discovered import Discovered, StartDiscovered
from rwkv_train.config.rwkv_lm.warmup import read_warmup
from rwkv_train.config.schema import RunConfig
from rwkv_train.config.versions import Conventions


def resolve_warmup(
    config: RunConfig,
    discovered: Discovered,
    conventions: Conventions,
    total: int | None,
    lines: list[str],
    *,
    restarts: bool,
) -> int | None:
    """Returns the steps of warmup, None for none.

    The number also shifts the curve after the ramp, so an exact resumption keeps that of its run;
    a resumption with an empty optimizer has RWKV-LM's automatic one.
    total: optimizer steps of the schedule, None without an end.
    restarts: the moments of the state belong to another optimizer, so they start empty.
    """
    given, stage = config.optim.warmup_steps, config.train.train_stage
    if given is not None:
        # -1 comes back from a config.yaml, where it stands for no warmup.
        steps = read_warmup(given)
    elif discovered.data is None:
        # Nothing is trained: stage 1 only writes initial weights.
        return None
    else:
        steps = _automatic(stage, discovered.start, conventions, lines, restarts=restarts)
    trains = discovered.data is not None
    if trains and total is not None and steps is not None and steps >= total:
        size = "as long as" if steps == total else "longer than"
        lines.append(f"the warmup of {steps} steps is {size} the run of {total}")
    return steps


def _automatic(
    stage: int | None,
    start: StartDiscovered,
    conventions: Conventions,
    lines: list[str],
    *,
    restarts: bool,
) -> int | None:
    if start.state is not None and start.state.warmup_steps is not None and not restarts:
        return read_warmup(start.state.warmup_steps)
    # Initial or given weights have no mini-epoch: RWKV-LM warms up by itself only after numbered
    # checkpoints.
    if restarts or (start.kind == "weights" and start.epoch is not None):
        steps = conventions.warmup_after_resume(stage)
        lines.append(f"warmup_steps {steps}: the optimizer starts empty after a resume")
        return steps
    lines.append("no warmup, as in RWKV-LM when --warmup_steps is not given; 10 is usual")
    return None
