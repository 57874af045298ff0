"""What has changed since the state of a resumed run was written; told, or refused.

The table of `config.resume_rules` decides; what depends on the place of the run is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.resume_differences import (
    Change,
    Difference,
    differences,
    known_values,
    leaf_values,
)
from rwkv_train.config.resume_rules import OTHER_RUN, Effect
from rwkv_train.config.run_length import RunLength, global_batch, run_length
from rwkv_train.config.rwkv_lm.warmup import read_warmup
from rwkv_train.config.schema import listed
from rwkv_train.config.versions import VERSIONS
from rwkv_train.errors import ConfigError
from rwkv_train.training.optim.schedule import Schedule, learning_rate, make_schedule
from rwkv_train.training.start.data_files import OpenedData
from rwkv_train.training.start.data_identity import DataIdentity, same_mask
from rwkv_train.training.start.resume_point import FromState, ResumePoint
from rwkv_train.training.start.resume_progress import resume_progress
from rwkv_train.training.start.run_identity import folder_run
from rwkv_train.training.start.sample_changes import Place, sample_changes

_BATCH = ("micro_bsz", "accumulate_grad_batches", "devices", "num_nodes")
_RATE = ("lr_init", "lr_final", "warmup_steps", "exit_tokens", "epoch_count", "hold_epochs")


def with_changes(
    point: ResumePoint,
    config: ResolvedConfig,
    opened: OpenedData,
    validation: DataIdentity | None,
) -> ResumePoint:
    """Returns the resume point with what has changed since its state was written.

    validation: identity of --val_data_file, if there is one. Raises ConfigError for changes that
    need to be accepted and are not.
    """
    if not isinstance(point, FromState):
        return point
    changes = _all_changes(point, config, opened, validation)
    accepted = listed(config.train.accept_changes)
    _refuse(point, changes, accepted)
    unused = [name for name in accepted if not any(name in change.names for change in changes)]
    notes = [f"accept_changes {name} is not used: it has not changed" for name in unused]
    return replace(point, changes=tuple(changes), notes=(*point.notes, *notes))


def _refuse(point: FromState, changes: Sequence[Change], accepted: Sequence[str]) -> None:
    fixed = [change for change in changes if change.effect is Effect.FIXED]
    if fixed:
        told = "; ".join(f"--{change.text}" for change in fixed)
        raise ConfigError(
            f"{told}; {point.path} cannot be resumed so: resume with the former value, or begin"
            " anew in another --proj_dir with --load_model"
        )
    refused = [
        change
        for change in changes
        if change.effect is Effect.REFUSED and not set(change.names) <= set(accepted)
    ]
    if refused:
        names = dict.fromkeys(
            name for change in changes if change.effect is Effect.REFUSED for name in change.names
        )
        told = "; ".join(change.text for change in refused)
        raise ConfigError(
            f"this is not the run of {point.path} any more: {told}. Resume with what it had, or"
            f" accept the change by --accept_changes {','.join(names)}"
        )


def _all_changes(
    point: FromState,
    config: ResolvedConfig,
    opened: OpenedData,
    validation: DataIdentity | None,
) -> list[Change]:
    length = run_length(config)
    resumed = resume_progress(point, config, length)
    before = known_values(_config_values(point.state), config)
    now = leaf_values(config)
    found = differences(before, config)
    steps = _Steps(point.state, length, resumed.progress.step, resumed.progress.ramp_begin)
    changes = _of_another_run(point)
    data = point.state.get("data")
    if data is None:
        text = f"{point.path.name} is of a version that did not keep what its data was: not compared"
        changes.append(Change(("data_file",), Effect.TOLD, text, ""))
    identities = (
        [DataIdentity.from_dict(part) for part in data["training"]]
        if data is not None
        else [replace(steps.unknown, tokens=part.source.tokens) for part in opened.parts]
    )
    sampled, done = sample_changes(
        before, now, found, identities, opened.parts, steps.place, data_known=data is not None
    )
    changes += sampled
    rest = [difference for difference in found if difference.name not in done]
    return changes


def _config_values(state: Mapping[str, Any]) -> dict[str, object]:
    ...
