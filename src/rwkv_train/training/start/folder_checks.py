"""Checks of what lies in a project folder before a run begins or resumes there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rwkv_train.checkpoint.digest import file_digest
from rwkv_train.checkpoint.names import BEST, FINAL, INIT
from rwkv_train.checkpoint.resume import StateFile, list_states, resume_candidates
from rwkv_train.errors import ConfigError


def about_weights(path: Path, digest: str | None) -> list[str]:
    """Returns a note when the weights next to a state are not those that were saved with it."""
    if digest is None:
        return []
    if not path.exists():
        return [
            f"{path} is gone, but the training state next to it goes on: remove the .state files "
            "too, or choose another --proj_dir, to start anew"
        ]
    try:
        same = file_digest(path) == digest
    except OSError as error:
        return [f"{path} cannot be read: {error.strerror}; the state next to it is complete"]
    if same:
        return []
    return [f"{path} is damaged or from another save than the state next to it, which is complete"]


def about_copy(used: StateFile, states: Sequence[StateFile], folder: Path) -> list[str]:
    """Returns a note when the state that is used is a copy: which, and what `folder` has instead.

    states: all there are, the furthest in the data first.
    """
    if used.path.parent == folder:
        return []
    own = [state for state in states if state.path.parent == folder]
    if not own:
        has = f"{folder} holds no state"
    elif own[0].position is None:
        has = f"no state in {folder} can be read"
    elif own[0].position < (used.position or 0):
        has = f"the newest in {folder} is the older {own[0].path.name}, after {own[0].step} steps"
    else:
        has = f"what {folder} has of that place was passed over"
    return [f"the run goes on from the copy {used.path}, after {used.step} steps: {has}"]


def require_unused(folder: Path, stage: int) -> None:
    """Raises ConfigError when a run that starts anew would write over what an earlier run left."""
    names = [c.weights or c.state for c in resume_candidates(folder)]
    names += [state.path for state in list_states(folder)]
    taken = list(dict.fromkeys(path.name for path in names if path is not None))
    if stage == 1:
        taken += [name for name in (INIT,) if (folder / name).exists()]
    taken += [name for name in (FINAL, BEST) if (folder / name).exists()]
    if taken:
        raise ConfigError(
            f"--train_stage {stage} starts anew, but {folder} already holds {', '.join(taken[:4])};"
            " choose another --proj_dir, or resume from there with --train_stage 3"
        )
