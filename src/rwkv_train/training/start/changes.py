"""Changes since the state of a resumed run was written: each is told, or refused.

The table of `config.resume_rules` decides; what depends on the place of the run is computed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rwkv_train.config.load import saved_values
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.resume_differences import (
    Change,
    Difference,
    differences,
    known_values,
    leaf_values,
)
from rwkv_train.config.resume_rules import OTHER_RUN, Effect
from rwkv_train.config.run_length import RunLength, run_length, total_steps
from rwkv_train.config.schema import listed
from rwkv_train.errors import ConfigError
from rwkv_train.training.start.data_identity import (
    DataIdentity,
    TrainingData,
    same_content,
    same_documents,
    same_mask,
)
from rwkv_train.training.start.pace_changes import Pace, batch_changes, epoch_changes, rate_changes
from rwkv_train.training.start.resume_point import FromState, ResumePoint
from rwkv_train.training.start.resume_progress import resume_progress
from rwkv_train.training.start.run_identity import folder_run
from rwkv_train.training.start.sample_changes import Place, sample_changes


def with_changes(
    point: ResumePoint,
    config: ResolvedConfig,
    data: TrainingData,
    validation: Sequence[DataIdentity],
) -> ResumePoint:
    """Returns the resume point with what has changed since its state was written.

    validation: identity of --val_data_file, if there is one. Raises ConfigError for changes that
    need to be accepted and are not.
    """
    if not isinstance(point, FromState):
        return point
    changes = _Comparison.of(point, config).changes(data, validation)
    accepted = listed(config.train.accept_changes)
    _refuse(point, changes, accepted)
    unused = [name for name in accepted if not any(name in change.names for change in changes)]
    notes = [f"accept_changes {name} is not used: it has not changed" for name in unused]
    return replace(point, changes=tuple(changes), notes=(*point.notes, *notes))


def _refuse(point: FromState, changes: Sequence[Change], accepted: Sequence[str]) -> None:
    fixed = [change.text for change in changes if change.effect is Effect.FIXED]
    if fixed:
        raise ConfigError(
            f"{point.path} cannot be resumed so: {'; '.join(fixed)}. Resume with the former value,"
            " or begin anew in another --proj_dir with --load_model"
        )
    asked = [change for change in changes if change.effect is Effect.REFUSED]
    refused = [change.text for change in asked if not set(change.names) <= set(accepted)]
    if refused:
        names = dict.fromkeys(name for change in asked for name in change.names)
        former = "what it had"
        if OTHER_RUN in names:
            former = f"the folder's own run by moving {point.path.name} away"
        raise ConfigError(
            f"the run of {point.path} would not be continued: {'; '.join(refused)}. Resume with"
            f" {former}, or accept the change by --accept_changes {','.join(names)}"
        )


@dataclass(frozen=True)
class _Comparison:
    """A resumed run next to the run of its state: leaf name -> value of both, and the place."""

    point: FromState
    before: Mapping[str, Any]
    now: Mapping[str, Any]
    found: Sequence[Difference]
    pace: Pace
    place: Place

    @classmethod
    def of(cls, point: FromState, config: ResolvedConfig) -> _Comparison:
        """Returns the comparison of `config` with what the state holds."""
        saved = point.state.get("config")
        before = known_values(saved_values(saved), config) if saved else leaf_values(config)
        length = run_length(config)
        progress = resume_progress(point, config, length).progress
        pace = Pace.of(point.state, before, config, progress)
        # To the end of the schedule: where a start pauses says nothing of what will be read.
        end = total_steps(config)
        place = _place(point.state, length, progress.step, config.data.ctx_len, end)
        return cls(point, before, leaf_values(config), differences(before, config), pace, place)

    def changes(self, data: TrainingData, validation: Sequence[DataIdentity]) -> list[Change]:
        """Returns what has changed, in the order in which people care."""
        kept = self.point.state.get("data")
        known = [*map(DataIdentity.from_dict, kept["training"])] if kept else None
        samples, done = sample_changes(self.before, self.now, self.found, known, data, self.place)
        found = [d for d in self.found if d.name not in done]
        changes = [*self._of_another_run(), *samples, *self._of_unknown_data(kept)]
        if kept and known is not None:
            changes += self._of_targets(known, data)
            before = [*map(DataIdentity.from_dict, kept["validation"])]
            changes += _of_validation(before, validation, self.before)
            found = [d for d in found if d.name != "val_data_file"]
        for compute in (batch_changes, rate_changes, epoch_changes):
            told, names = compute(self.pace, found)
            changes += told
            found = [d for d in found if d.name not in names]
        return changes + [_change(difference) for difference in found]

    def _of_another_run(self) -> Iterator[Change]:
        """Yields that the state was written by another run than the folder's."""
        own, state = folder_run(self.point.folder), self.point.state.get("run")
        if own is not None and state is not None and own != state:
            text = (
                f"{self.point.path.name} is of another run ({state[:8]}) than the one that"
                f" {self.point.folder} holds ({own[:8]})"
            )
            yield Change((OTHER_RUN,), Effect.REFUSED, text, "another run")

    def _of_unknown_data(self, kept: object) -> Iterator[Change]:
        """Yields that an older state does not tell what its data was."""
        if not kept:
            text = f"{self.point.path.name} does not tell its data, which were not compared"
            yield Change(("data_file",), Effect.TOLD, text, "")

    def _of_targets(self, known: Sequence[DataIdentity], data: TrainingData) -> Iterator[Change]:
        """Yields where the same tokens have another loss mask or other documents."""
        for i, (j, kind) in data.kin_of(known).items():
            files, before = data.files[i], known[j]
            masked = self.before["loss_mask"] == self.now["loss_mask"] == "on"
            if masked and not same_mask(before, files):
                text = f"the loss mask of {files.name} has other weights: other targets count"
                yield Change(("loss_mask",), Effect.REFUSED, text, "loss mask")
            resets = self.before["reset_at_documents"] and self.now["reset_at_documents"]
            if resets and kind == "same" and not same_documents(before, files):
                text = f"documents of {files.name} start elsewhere: states are reset there"
                yield Change(("reset_at_documents",), Effect.REFUSED, text, "documents")


def _change(difference: Difference) -> Change:
    name, rule = difference.name, difference.rule
    text = f"{difference}: {rule.says}"
    if rule.effect is Effect.FIXED:
        # A refusal in any case, which begins with what was given.
        text = f"--{name} {difference.now}, but {name} {difference.before} there ({rule.says})"
    return Change((name,), rule.effect, text, f"{name} {difference.now}")


def _place(
    state: Mapping[str, Any], length: RunLength, step: int, ctx_len: int, end: int | None
) -> Place:
    windows = state.get("windows", 1)
    row_tokens = state.get("tokens_per_step", length.tokens_per_step) * windows
    # Rows that were begun count as read.
    read = -(-state["step"] // windows) * row_tokens // state.get("ctx_len", ctx_len)
    left = None
    if end is not None:
        left = -(-max(0, end - step) // length.windows) * length.batch_samples
    return Place(read, length.samples(step)[0] - 1, left)


def _of_validation(
    before: Sequence[DataIdentity], now: Sequence[DataIdentity], values: Mapping[str, Any]
) -> Iterator[Change]:
    """Yields that the losses from here on are of other text, or the first ones."""
    if now and not same_content(before, now):
        told = (
            "validated on other data: losses cannot be compared with earlier ones"
            if before or values["val_split"]
            else "validated from here on"
        )
        yield Change(("val_data_file",), Effect.TOLD, f"val_data_file: {told}", "validation")
