"""Checks of what lies in a project folder before a run begins or resumes there."""

from __future__ import annotations

from pathlib import Path

from rwkv_train.checkpoint.digest import file_digest
from rwkv_train.checkpoint.names import BEST, FINAL, INIT
from rwkv_train.checkpoint.resume import list_states, resume_candidates
from rwkv_train.errors import ConfigError


def about_weights(path: Path, digest: str | None) -> list[str]:
    """Returns a note when the weights next to a state are not those that were saved with it."""
    if digest is None or not path.is_file():
        return []
    try:
        same = file_digest(path) == digest
    except OSError as error:
        return [f"{path} cannot be read: {error.strerror}; the state next to it is complete"]
    if same:
        return []
    return [f"{path} is damaged or from another save than the state next to it, which is complete"]


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
